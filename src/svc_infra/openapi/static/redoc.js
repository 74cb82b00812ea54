"use strict";

const reference = document.getElementById("reference");
const { url, ...options } = JSON.parse(reference.dataset.options);

document.body.style.margin = 0;
Redoc.init(url, options, reference);
