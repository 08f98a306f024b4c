# Read (`. /run/network/downloads.sh`) by each RUN that downloads packages. A closed network hands
# its certificates and its mirrors to the build as secrets; they last as long as the RUN.
if [ -s /run/secrets/ca ]; then
    export APT_CONFIG=/run/network/apt.conf
    export PIP_CERT=/run/secrets/ca NODE_EXTRA_CA_CERTS=/run/secrets/ca
fi
if [ -s /run/secrets/pip_index_url ]; then
    PIP_INDEX_URL=$(cat /run/secrets/pip_index_url)
    export PIP_INDEX_URL
fi
if [ -s /run/secrets/npm_registry ]; then
    YARN_NPM_REGISTRY_SERVER=$(cat /run/secrets/npm_registry)
    export YARN_NPM_REGISTRY_SERVER
fi
export DEBIAN_FRONTEND=noninteractive
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
export PIP_PROGRESS_BAR=off
