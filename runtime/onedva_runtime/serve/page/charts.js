// Small charts of one value per clip, the newest at the right.

const KEPT = 60;

/** A chart on a canvas; `add` a value, `clear` them all. */
export class Chart {
  constructor(canvas, { digits = 0 } = {}) {
    this.canvas = canvas;
    this.digits = digits;
    this.values = [];
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  add(value) {
    this.values.push(value);
    if (this.values.length > KEPT) this.values.shift();
    this.draw();
  }

  clear() {
    this.values = [];
    this.draw();
  }

  draw() {
    const { canvas, values } = this;
    const scale = devicePixelRatio || 1;
    const width = canvas.clientWidth;
    const height = canvas.clientHeight;
    if (!width || !height) return;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    const style = getComputedStyle(document.documentElement);
    const context = canvas.getContext("2d");
    context.scale(scale, scale);
    const [left, right, top, bottom] = [36, 4, 8, 6];
    const { low, high } = bounds(values);
    const y = (value) => top + (1 - (value - low) / (high - low)) * (height - top - bottom);
    const x = (index) => left + (index / (KEPT - 1)) * (width - left - right);
    context.font = "11px system-ui, sans-serif";
    context.textAlign = "right";
    context.textBaseline = "middle";
    context.lineWidth = 1;
    for (const mark of [low, (low + high) / 2, high]) {
      context.strokeStyle = style.getPropertyValue("--line");
      context.beginPath();
      context.moveTo(left, Math.round(y(mark)) + 0.5);
      context.lineTo(width - right, Math.round(y(mark)) + 0.5);
      context.stroke();
      context.fillStyle = style.getPropertyValue("--soft");
      context.fillText(mark.toFixed(this.digits), left - 6, y(mark));
    }
    if (!values.length) return;
    const first = KEPT - values.length;
    context.strokeStyle = context.fillStyle = style.getPropertyValue("--accent");
    context.lineWidth = 2;
    context.lineJoin = "round";
    context.beginPath();
    values.forEach((value, index) => context.lineTo(x(first + index), y(value)));
    context.stroke();
    context.beginPath();
    context.arc(x(KEPT - 1), y(values.at(-1)), 3, 0, 2 * Math.PI);
    context.fill();
  }
}

/** A range around the values whose ends are round numbers. */
function bounds(values) {
  if (!values.length) return { low: 0, high: 1 };
  const least = Math.min(...values);
  const most = Math.max(...values);
  const step = 10 ** Math.floor(Math.log10(Math.max(most - least, most / 20, 1e-3)));
  const low = Math.floor(least / step) * step;
  const high = Math.ceil(most / step) * step;
  return { low, high: high > low ? high : low + 2 * step };
}
