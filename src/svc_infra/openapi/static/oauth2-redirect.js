"use strict";

// Swagger UI opened this window and left in `swaggerUIRedirectOauth2` what it waits for.
const waiting = window.opener.swaggerUIRedirectOauth2;
const answer = Object.fromEntries(new URLSearchParams((window.location.hash || window.location.search).slice(1)));
const { auth } = waiting;
const isCodeFlow = ["accessCode", "authorizationCode", "authorization_code"].includes(auth.schema.get("flow"));

function refuse(message) {
  waiting.errCb({ authId: auth.name, source: "auth", level: "error", message });
}

if (answer.state !== waiting.state) {
  refuse("The answer belongs to another sign-in: its state does not match.");
} else if (!isCodeFlow || auth.code) {
  waiting.callback({ auth, token: answer, isValid: true, redirectUrl: waiting.redirectUrl });
} else if (answer.code) {
  delete waiting.state;
  auth.code = answer.code;
  waiting.callback({ auth, redirectUrl: waiting.redirectUrl });
} else {
  refuse(answer.error_description || answer.error || "The authorization server sent no code.");
}

window.close();
