"use strict";

const reference = document.getElementById("reference");
const { oauth2, oauth2RedirectPath, ...parameters } = JSON.parse(reference.dataset.options);

const dark = window.matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", follow);
follow();

const viewer = SwaggerUIBundle({
  ...parameters,
  domNode: reference,
  oauth2RedirectUrl: new URL(oauth2RedirectPath, window.location.href).href,
  presets: [SwaggerUIBundle.presets.apis],
});

if (oauth2) {
  viewer.initOAuth(oauth2);
}
