// A real OpenID provider for the login test: panva's oidc-provider with its development forms.
//
// Any password is accepted. Users whose name starts with "prof" are in group "teachers", with
// "stud" in "students", all others in none. Environment: OP_PORT, CLIENT_ID, CLIENT_SECRET,
// REDIRECT_URI. It ends with its standard input.
import { Provider } from "oidc-provider";

const { OP_PORT, CLIENT_ID, CLIENT_SECRET, REDIRECT_URI } = process.env;

function groupsOf(id) {
  if (id.startsWith("prof")) return ["teachers"];
  return id.startsWith("stud") ? ["students"] : [];
}

const provider = new Provider(`http://127.0.0.1:${OP_PORT}`, {
  clients: [
    {
      client_id: CLIENT_ID,
      client_secret: CLIENT_SECRET,
      redirect_uris: [REDIRECT_URI],
    },
  ],
  findAccount: async (_context, id) => ({
    accountId: id,
    claims: async () => ({ sub: id, email: `${id}@example.org`, groups: groupsOf(id) }),
  }),
  claims: { openid: ["sub"], profile: ["name"], email: ["email"], groups: ["groups"] },
  scopes: ["openid", "profile", "email", "groups"],
  cookies: { keys: ["test"] },
  features: { devInteractions: { enabled: true } },
  pkce: { required: () => true },
});

provider.listen(Number(OP_PORT), "127.0.0.1", () => console.log("listening"));
process.stdin.on("end", () => process.exit(0)).resume();
