// Tells the values under the pointer, in pictures over steps. Without scripts the page only lacks that.
for (const data of document.querySelectorAll('.plot script[type="application/json"]')) {
  const plot = data.parentElement, svg = plot.querySelector("svg"), view = svg.viewBox.baseVal;
  const frame = JSON.parse(data.textContent);
  const cross = plot.appendChild(Object.assign(document.createElement("div"), { className: "cross", hidden: true }));
  const tip = plot.appendChild(Object.assign(document.createElement("div"), { className: "tip", hidden: true }));
  const nearest = (points, x) => points.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a);
  const hide = () => { cross.hidden = tip.hidden = true; };
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect(), scale = box.width / view.width;
    const left = frame.left * scale, right = frame.right * scale;
    const at = (event.clientX - box.left - left) / (right - left);
    if (at < -0.02 || at > 1.02) return hide();
    const x = frame.x[0] + at * (frame.x[1] - frame.x[0]);
    const shown = frame.series.filter(s => s.points.length && s.name).map(s => [s, nearest(s.points, x)]);
    if (!shown.length) return hide();
    const step = nearest(shown.map(([, p]) => p), x)[0];
    const place = left + (step - frame.x[0]) / (frame.x[1] - frame.x[0]) * (right - left);
    tip.replaceChildren(Object.assign(document.createElement("div"), { textContent: `step ${step.toLocaleString("en")}` }));
    for (const [series, point] of shown) {
      const line = tip.appendChild(document.createElement("div"));
      const swatch = line.appendChild(document.createElement("i"));
      const color = svg.querySelector(`[stroke="${series.color}"],[fill="${series.color}"]`);
      swatch.style.background = color ? getComputedStyle(color)[color.getAttribute("stroke") === series.color ? "stroke" : "fill"] : series.color;
      swatch.style.opacity = series.faint ? 0.4 : 1;
      line.append(`${series.name} `);
      line.appendChild(document.createElement("b")).textContent = point[2];
      if (point[0] !== step) line.append(` (step ${point[0].toLocaleString("en")})`);
    }
    cross.hidden = tip.hidden = false;
    Object.assign(cross.style, { left: `${place}px`, top: `${frame.top * scale}px`, height: `${(frame.bottom - frame.top) * scale}px` });
    const beside = place + 12 + tip.offsetWidth > box.width ? place - 12 - tip.offsetWidth : place + 12;
    Object.assign(tip.style, { left: `${Math.max(0, beside)}px`, top: `${frame.top * scale + 8}px` });
  });
}
