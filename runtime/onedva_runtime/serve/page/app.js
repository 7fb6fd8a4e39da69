// The page: a source (file or camera), the session it goes through, and what is shown of it.

import { Chart } from "./charts.js";
import { Live } from "./live.js";

const $ = (id) => document.getElementById(id);
const video = $("video");
const grabber = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
const charts = {
  tokens: new Chart($("chart-tokens")),
  psnr: new Chart($("chart-psnr"), { digits: 1 }),
  kbps: new Chart($("chart-kbps")),
};
const NO_LIMIT = Number($("bandwidth").max);

let live = null;
let timer = 0;
let queue = []; // frames to show
let shown = 0;
let due = 0; // when the next of them is
let retry = 0;

function say(text, problem = false) {
  $("status").textContent = text;
  $("status").classList.toggle("problem", problem);
}

const tokens = () => (Number($("tokens").value) < 0 ? "auto" : $("tokens").value);
const kbps = () => (Number($("bandwidth").value) >= NO_LIMIT ? null : Number($("bandwidth").value));

async function greet() {
  const token = $("token").value.trim();
  const answer = await fetch("/v1/info", { headers: token ? { Authorization: `Bearer ${token}` } : {} });
  if (answer.status === 401) {
    $("token-row").classList.remove("hidden");
    $("model").textContent = "wants an access token";
    return;
  }
  const body = await answer.json();
  if (!answer.ok) {
    $("model").textContent = body.error.message;
    clearTimeout(retry);
    retry = setTimeout(greet, 1500);
    return;
  }
  $("model").textContent = `${body.model}, up to ${body.max_tokens} latents per clip of ${body.clip_frames} frames`;
  $("tokens").max = body.max_tokens;
  $("steps").max = Math.min(8, body.max_steps);
}

/** The size of what is sent: the source's shape, its longer side as chosen, both even. */
function sessionSize() {
  const longer = Number($("size").value);
  const scale = longer / Math.max(video.videoWidth, video.videoHeight);
  const side = (length) => Math.max(16, Math.round((length * scale) / 2) * 2);
  return { width: side(video.videoWidth), height: side(video.videoHeight) };
}

function start() {
  if (!video.videoWidth) return;
  stopSession();
  const { width, height } = sessionSize();
  const fps = Number($("rate").value);
  grabber.canvas.width = width;
  grabber.canvas.height = height;
  for (const id of ["source", "decoded"]) {
    $(id).width = width;
    $(id).height = height;
    $(id).style.aspectRatio = `${width} / ${height}`;
  }
  Object.values(charts).forEach((chart) => chart.clear());
  shown = 0;
  const options = { width, height, fps, tokens: tokens(), steps: Number($("steps").value), kbps: kbps() };
  live = new Live({ ...options, token: $("token").value.trim() }, { clip, frames, ended });
  timer = setInterval(grab, 1000 / fps);
  $("stop").disabled = false;
  $("hint").classList.add("hidden");
  say(`${width}×${height} at ${fps} frames per second`);
}

function grab() {
  if (!live || video.readyState < 2) return;
  const { width, height } = grabber.canvas;
  grabber.drawImage(video, 0, 0, width, height);
  live.push(grabber.getImageData(0, 0, width, height).data);
}

function clip(facts) {
  const seconds = facts.frames / live.options.fps;
  const rate = (8 * facts.bytes) / seconds / 1000;
  $("bits").textContent = (8 * facts.bytes).toLocaleString("en");
  $("kbps").textContent = rate.toFixed(0);
  $("used").textContent = facts.tokens;
  charts.tokens.add(facts.tokens);
  charts.kbps.add(rate);
  const dropped = facts.dropped_segments;
  $("badge").textContent = dropped ? `${dropped} tail segment${dropped > 1 ? "s" : ""} dropped` : "";
  $("badge").classList.toggle("hidden", !dropped);
}

function frames(list, facts) {
  queue.push(...list);
  if (facts.psnr !== null) {
    $("psnr").textContent = facts.psnr.toFixed(1);
    charts.psnr.add(facts.psnr);
  }
  $("latency").textContent = facts.latency.toFixed(0);
}

/** Show frames at their rate, a little faster while too many wait. */
function show(now) {
  requestAnimationFrame(show);
  if (!live || !queue.length || now < due) return;
  const step = 1000 / live.options.fps / (queue.length > 2 * live.options.fps ? 1.5 : 1);
  due = Math.max(due + step, now);
  const frame = queue.shift();
  const { width, height } = live.options;
  const draw = (id, pixels) => $(id).getContext("2d").putImageData(new ImageData(pixels, width, height), 0, 0);
  draw("decoded", frame.pixels);
  if (frame.source) draw("source", frame.source);
  shown += 1;
  $("frames").textContent = shown.toLocaleString("en");
}

function ended(problem) {
  clearInterval(timer);
  queue = [];
  $("stop").disabled = true;
  if (problem) say(problem, true);
}

function stopSession() {
  if (live) live.end();
  live = null;
}

function stopAll() {
  stopSession();
  video.pause();
  if (video.srcObject) video.srcObject.getTracks().forEach((track) => track.stop());
  video.srcObject = null;
  if (video.src) URL.revokeObjectURL(video.src);
  video.removeAttribute("src");
  say("");
}

async function play(where) {
  stopAll();
  Object.assign(video, where);
  try {
    await video.play();
    start();
  } catch (problem) {
    say(`This browser cannot play that: ${problem.message}`, true);
  }
}

async function useCamera() {
  try {
    const constraints = { video: { width: { ideal: 640 }, height: { ideal: 480 } }, audio: false };
    if (!navigator.mediaDevices) throw new Error("browsers give the camera to https and localhost only");
    await play({ srcObject: await navigator.mediaDevices.getUserMedia(constraints) });
  } catch (problem) {
    say(`No camera: ${problem.message}`, true);
  }
}

function openFile(file) {
  if (file) play({ src: URL.createObjectURL(file) });
}

function bindSlider(id, text, changed) {
  const slider = $(id);
  slider.addEventListener("input", () => {
    $(`${id}-shown`).textContent = text();
  });
  slider.addEventListener("change", () => live && changed());
}

bindSlider("tokens", tokens, () => live.setTokens(tokens()));
bindSlider("steps", () => $("steps").value, () => live.setSteps(Number($("steps").value)));
bindSlider(
  "bandwidth",
  () => (kbps() === null ? "no limit" : `${kbps()} kbit/s`),
  () => live.setBandwidth(kbps()),
);
$("file").addEventListener("change", (event) => {
  openFile(event.target.files[0]);
  event.target.value = ""; // so that the same file can be chosen again
});
$("camera").addEventListener("click", useCamera);
$("stop").addEventListener("click", stopAll);
$("token-row").addEventListener("change", greet);
$("token-row").addEventListener("submit", (event) => event.preventDefault());
for (const id of ["size", "rate"]) $(id).addEventListener("change", () => live && start());
$("drop").addEventListener("dragover", (event) => {
  event.preventDefault();
  $("drop").classList.add("over");
});
$("drop").addEventListener("dragleave", () => $("drop").classList.remove("over"));
$("drop").addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  openFile(event.dataTransfer.files[0]);
});
requestAnimationFrame(show);
greet();
