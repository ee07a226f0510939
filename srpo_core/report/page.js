// Moves the line between before and after: by the range (arrow keys too) or by dragging over an image.
"use strict";
const gallery = document.getElementById("gallery");
const range = document.getElementById("split");
function show() {
  gallery.style.setProperty("--split", range.value + "%");
  range.setAttribute("aria-valuetext", range.value + " percent before");
}
function drag(event) {
  const shot = event.target.closest(".shot");
  if (!shot || !document.getElementById("view-slider").checked) return;
  if (event.pointerType !== "mouse" && event.type === "pointermove" && !event.isPrimary) return;
  const box = shot.getBoundingClientRect();
  range.value = Math.round((100 * (event.clientX - box.left)) / box.width);
  show();
}
range.addEventListener("input", show);
gallery.addEventListener("pointermove", drag);
gallery.addEventListener("pointerdown", drag);
show();
