// At the pointer, every chart shows the values of all lines at their points nearest to it.
for (const chart of document.querySelectorAll(".chart")) {
  const svg = chart.querySelector("svg");
  const mark = chart.querySelector(".at");
  const series = JSON.parse(chart.dataset.series);
  const tip = chart.appendChild(document.createElement("div"));
  tip.className = "tip";
  tip.hidden = true;

  const nearest = (points, x) => points.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a));

  const row = (text, color) => {
    const line = document.createElement("span");
    const box = line.appendChild(document.createElement("i"));
    box.style.background = color;
    line.append(text);
    return line;
  };

  const show = (event) => {
    const frame = svg.getBoundingClientRect();
    const scale = svg.viewBox.baseVal.width / frame.width;
    const x = (event.clientX - frame.left) * scale;
    const reach = 8; // pixels beyond the ends of a line
    const near = series.filter(({ points }) => points[0][0] - reach <= x && x <= points[points.length - 1][0] + reach);
    if (near.length === 0) return hide();
    const found = near.map((one) => ({ ...one, at: nearest(one.points, x) }));
    const first = found.reduce((a, b) => (Math.abs(b.at[0] - x) < Math.abs(a.at[0] - x) ? b : a));
    mark.setAttribute("x1", first.at[0]);
    mark.setAttribute("x2", first.at[0]);
    mark.style.visibility = "visible";

    const head = document.createElement("b");
    head.textContent = `${chart.dataset.x}: ${first.at[2]}`;
    const lines = found.sort((a, b) => a.at[1] - b.at[1]);
    tip.replaceChildren(head, ...lines.map((one) => row(`${one.label}: ${one.at[3]}`, one.color)));
    tip.hidden = false;

    // beside the pointer, on the side that has more space
    const left = event.clientX - frame.left;
    const space = frame.width - tip.offsetWidth;
    tip.style.left = `${Math.max(0, Math.min(space, left > frame.width / 2 ? left - tip.offsetWidth - 14 : left + 14))}px`;
    tip.style.top = `${Math.max(0, event.clientY - frame.top - tip.offsetHeight - 10)}px`;
  };

  const hide = () => {
    tip.hidden = true;
    mark.style.visibility = "hidden";
  };

  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", hide);
}
