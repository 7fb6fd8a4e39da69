// One live session there and back: frames to /v1/live/encode, its packets to /v1/live/decode, frames again. The service's
// docs/serve.md has the messages.

const HEAD = 12; // bytes before frames: number (4), count, height, width, 0 (2 each)
const MOST_BUFFERED = 8; // frames that may wait to be sent before frames of the source are skipped
const MOST_KEPT = 150; // source frames that wait for their reconstruction

export class Live {
  /** options: width, height, fps, tokens, steps, kbps (null: no limit), token (""). handlers: clip(facts), frames(list,
   *  facts), ended(problem or null). */
  constructor(options, handlers) {
    this.options = options;
    this.handlers = handlers;
    this.sources = new Map(); // frame number → { pixels, at }
    this.sent = 0;
    this.skipped = 0;
    this.open = false;
    this.over = false;
    const size = { width: options.width, height: options.height, fps: options.fps };
    const limit = options.kbps === null ? {} : { max_kbps: options.kbps };
    this.encoder = this.socket("encode", { ...size, tokens: options.tokens, ...limit });
    this.decoder = this.socket("decode", { ...size, steps: options.steps });
    this.encoder.onmessage = (event) => this.coded(event.data);
    this.decoder.onmessage = (event) => this.decoded(event.data);
    this.facts = null;
  }

  socket(work, query) {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const address = `${scheme}://${location.host}/v1/live/${work}?${new URLSearchParams(query)}`;
    const protocols = this.options.token ? ["onedva.v1", `bearer.${this.options.token}`] : ["onedva.v1"];
    const socket = new WebSocket(address, protocols);
    let opened = false;
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      opened = true;
      this.open = this.encoder.readyState === 1 && this.decoder.readyState === 1;
    };
    socket.onclose = () =>
      this.end(
        opened
          ? "The service ended the session."
          : "The service did not open a session: it may be full, or want a token. Try a smaller size, or later.",
      );
    return socket;
  }

  /** Send a frame, RGBA of the session's size. Returns whether it was taken: the source goes on when the service or the
   *  network is behind. */
  push(pixels) {
    const { width, height, fps } = this.options;
    if (!this.open || this.over) return false;
    const size = 8 + 3 * width * height;
    if (this.encoder.bufferedAmount > MOST_BUFFERED * size || this.sources.size >= MOST_KEPT) {
      this.skipped += 1;
      return false;
    }
    const message = new Uint8Array(size);
    new DataView(message.buffer).setBigInt64(0, BigInt(Math.round((this.sent * 1e6) / fps)), true);
    for (let from = 0, to = 8; from < pixels.length; from += 4, to += 3) {
      message[to] = pixels[from];
      message[to + 1] = pixels[from + 1];
      message[to + 2] = pixels[from + 2];
    }
    this.encoder.send(message);
    this.sources.set(this.sent, { pixels, at: performance.now() });
    this.sent += 1;
    return true;
  }

  setTokens(tokens) {
    this.tell(this.encoder, { type: "set", tokens });
  }

  setSteps(steps) {
    this.tell(this.decoder, { type: "set", steps });
  }

  setBandwidth(kbps) {
    this.tell(this.encoder, { type: "bandwidth", kbps });
  }

  tell(socket, message) {
    if (socket.readyState === 1) socket.send(JSON.stringify(message));
  }

  /** Packets of a clip, or what there is to say of it. */
  coded(data) {
    if (data instanceof ArrayBuffer) {
      if (this.decoder.readyState === 1) this.decoder.send(data);
      return;
    }
    const facts = JSON.parse(data);
    if (facts.type === "error") this.end(facts.message);
    else if (facts.type === "clip") this.handlers.clip(facts);
  }

  /** Frames of a clip, after what there is to say of them. */
  decoded(data) {
    if (!(data instanceof ArrayBuffer)) {
      this.facts = JSON.parse(data);
      if (this.facts.type === "error") this.end(this.facts.message);
      return;
    }
    const head = new DataView(data);
    const first = head.getUint32(0, true);
    const [count, height, width] = [4, 6, 8].map((offset) => head.getUint16(offset, true));
    const bytes = new Uint8Array(data, HEAD);
    const now = performance.now();
    const frames = [];
    let squares = 0;
    let values = 0;
    let latency = 0;
    for (let index = 0; index < count; index += 1) {
      const source = this.sources.get(first + index);
      this.sources.delete(first + index);
      const pixels = new Uint8ClampedArray(4 * width * height);
      const start = 3 * width * height * index;
      for (let from = start, to = 0; to < pixels.length; from += 3, to += 4) {
        pixels[to] = bytes[from];
        pixels[to + 1] = bytes[from + 1];
        pixels[to + 2] = bytes[from + 2];
        pixels[to + 3] = 255;
        if (source) {
          for (let channel = 0; channel < 3; channel += 1) {
            const difference = bytes[from + channel] - source.pixels[to + channel];
            squares += difference * difference;
          }
          values += 3;
        }
      }
      if (source) latency = Math.max(latency, now - source.at);
      frames.push({ number: first + index, pixels, source: source ? source.pixels : null });
    }
    const psnr = values ? Math.min(99, 10 * Math.log10((255 * 255) / Math.max(squares / values, 1e-9))) : null;
    this.handlers.frames(frames, { ...this.facts, psnr, latency });
  }

  /** End the session; `problem` is what went wrong, if anything. */
  end(problem = null) {
    if (this.over) return;
    this.over = true;
    this.open = false;
    for (const socket of [this.encoder, this.decoder]) {
      socket.onclose = null;
      socket.close();
    }
    this.sources.clear();
    this.handlers.ended(problem);
  }
}
