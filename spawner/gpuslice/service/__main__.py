"""``python -m gpuslice.service`` starts the service."""

from gpuslice.service.run import main

raise SystemExit(main())
