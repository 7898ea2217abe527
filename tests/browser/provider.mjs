// A certified OpenID Connect provider with one client, for the tests: `oidc-provider` of npm, with its own pages for
// signing in and for consent. Whatever is typed as the login is the person; the address goes with it, out of userinfo
// only, as such providers do.
//
//   node tests/browser/provider.mjs PORT CLIENT_ID CLIENT_SECRET REDIRECT_URI [target/browser]
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [port, client_id, client_secret, redirect_uri, modules = "target/browser"] = process.argv.slice(2);
const require = createRequire(path.resolve(modules, "package.json"));
const { default: Provider } = await import(pathToFileURL(require.resolve("oidc-provider")));

const provider = new Provider(`http://localhost:${port}`, {
  clients: [{ client_id, client_secret, redirect_uris: [redirect_uri], grant_types: ["authorization_code"], response_types: ["code"] }],
  claims: { openid: ["sub"], email: ["email", "email_verified"], profile: ["name"] },
  pkce: { required: () => true },
  cookies: { keys: ["of the tests"] },
  features: { devInteractions: { enabled: true } },
  async findAccount(_, id) {
    return { accountId: id, claims: async () => ({ sub: id, email: `${id}@example.com`, email_verified: true, name: id }) };
  },
});
provider.listen(Number(port), "127.0.0.1", () => console.log("listening"));
