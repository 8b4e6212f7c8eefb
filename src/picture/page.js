{
  const frame = document.getElementById("picture"), svg = frame.querySelector("svg");
  const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
  let scale = 1;
  const show = (to) => {
    const x = (frame.scrollLeft + frame.clientWidth / 2) / scale, y = (frame.scrollTop + frame.clientHeight / 2) / scale;
    scale = Math.min(8, Math.max(0.05, to));
    svg.setAttribute("width", width * scale);
    svg.setAttribute("height", height * scale);
    frame.scrollTo(x * scale - frame.clientWidth / 2, y * scale - frame.clientHeight / 2);
  };
  const by = { in: () => show(scale * 1.25), out: () => show(scale / 1.25), one: () => show(1), fit: () => show(frame.clientWidth / width) };
  for (const button of document.querySelectorAll("[data-zoom]")) button.addEventListener("click", () => by[button.dataset.zoom]());
  if (width > frame.clientWidth) by.fit();
}
