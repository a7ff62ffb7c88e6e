"use strict";
// a box with two pictures of which a slider, or a finger on the picture, shows more of the one or of the other
const comparison = (box, slider) => {
  const cut = () => box.style.setProperty("--cut", `${slider.value}%`);
  const drag = (event) => {
    if (event.type === "pointermove" && !(event.buttons & 1)) return;
    const place = box.getBoundingClientRect();
    slider.value = ((event.clientX - place.left) / place.width) * 100;
    cut();
  };
  slider.addEventListener("input", cut);
  box.addEventListener("pointerdown", (event) => { box.setPointerCapture(event.pointerId); drag(event); });
  box.addEventListener("pointermove", drag);
  cut();
};
