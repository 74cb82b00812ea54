// A certified OpenID provider on loopback. Whoever logs in as "ana" is ana@example.com; "bo-unverified" has no proven address.
import Provider from "oidc-provider";

const port = Number(process.argv[2]);
const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [
    {
      client_id: "the-client",
      client_secret: "the secret: of the client, 32 bytes+",
      redirect_uris: ["https://test/oauth/callback"],
      grant_types: ["authorization_code", "refresh_token"],
    },
  ],
  claims: { email: ["email", "email_verified"], profile: ["name"] },
  findAccount: async (_, id) => ({
    accountId: id,
    claims: async () => ({
      sub: id,
      email: `${id}@example.com`,
      email_verified: !id.endsWith("-unverified"),
      name: id,
    }),
  }),
  pkce: { required: () => true },
  cookies: { keys: ["only for tests"] },
});
provider.listen(port, "127.0.0.1", () => console.log("listening"));
