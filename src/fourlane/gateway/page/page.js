// The page at /: reads /stats once a second and draws it; sends prompts to /v1/completions.
"use strict";

const at = (id) => document.getElementById(id);
const make = (tag, text, name) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (name) node.className = name;
  return node;
};

function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 1) return `${(value * 1000).toFixed(value < 0.1 ? 1 : 0)} ms`;
  return `${value.toFixed(2)} s`;
}

function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) { value /= 1000; unit += 1; }
  return `${unit ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

function span(total) {
  const days = Math.floor(total / 86400), hours = Math.floor(total / 3600) % 24, minutes = Math.floor(total / 60) % 60;
  if (days) return `${days} d ${hours} h`;
  if (hours) return `${hours} h ${minutes} min`;
  return minutes ? `${minutes} min ${Math.floor(total % 60)} s` : `${Math.floor(total)} s`;
}

function bar(share, name) {
  const track = make("div", undefined, "track"), fill = make("div", undefined, `fill ${name || ""}`);
  fill.style.width = `${Math.min(100, Math.max(0, share * 100)).toFixed(1)}%`;
  track.append(fill);
  return track;
}

function cell(content, name) {
  const node = make("td", undefined, name);
  node.append(content);
  return node;
}

function drawSpark(counts) {
  const top = Math.max(1, ...counts), path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  const points = counts.map((count, x) => `${(x / (counts.length - 1)) * 120} ${30 - (count / top) * 28}`);
  path.setAttribute("d", `M${points.join("L")}`);
  at("spark").replaceChildren(path);
}

function drawHeat(rows) {
  const canvas = make("canvas", undefined, "heat");
  canvas.width = rows[0].length;
  canvas.height = rows.length;
  const context = canvas.getContext("2d"), image = context.createImageData(canvas.width, canvas.height);
  rows.forEach((row, y) => {
    const mean = row.reduce((sum, count) => sum + count, 0) / row.length || 1;
    row.forEach((count, x) => {
      const heat = Math.min(1, count / mean / 3), place = 4 * (y * canvas.width + x);
      // from deep blue (unused) over orange to near white (three times the mean and more)
      image.data[place] = 30 + 225 * Math.min(1, heat * 1.6);
      image.data[place + 1] = 40 + 190 * heat;
      image.data[place + 2] = 110 + 60 * heat * heat;
      image.data[place + 3] = 255;
    });
  });
  context.putImageData(image, 0, 0);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", "Tokens by expert");
  return canvas;
}

function drawRank(rank) {
  const row = make("tr"), state = make("span", rank.state, rank.state);
  state.title = rank.detail || (rank.host ? `process ${rank.pid} on ${rank.host}` : "no process yet");
  const use = bar(rank.kv_use);
  use.title = `${(rank.kv_use * 100).toFixed(1)} % of ${rank.kv_pages} pages`;
  row.append(
    cell(rank.name), cell(state), cell(use), cell(rank.running), cell(rank.waiting), cell(rank.queued_tokens),
    cell(bytes(rank.memory_bytes)), cell(rank.pid ?? "–"), cell(rank.restarts),
  );
  return row;
}

function drawPool(pool) {
  const box = make("div", undefined, "pool"), title = make("h3", pool.name);
  const balance = pool.balance === null ? "" : `expert balance max/mean ${pool.balance.toFixed(2)}`;
  title.append(make("span", balance, "faint"));
  const table = make("table"), head = make("tr"), body = make("tbody");
  for (const name of ["Rank", "State", "KV use", "Run", "Wait", "Tokens due", "Memory", "Pid", "Restarts"])
    head.append(make("th", name));
  const top = make("thead");
  top.append(head);
  body.append(...pool.ranks.map(drawRank));
  table.append(top, body);
  box.append(title, table);
  if (pool.experts.length) {
    const rows = pool.experts.length === 1 ? "all layers together" : `${pool.experts.length} layers from top to bottom`;
    box.append(drawHeat(pool.experts));
    box.append(make("p", `Tokens by expert (${pool.experts[0].length} across, ${rows}); bright is three times the mean`, "caption"));
  }
  return box;
}

const ORDER = ["expert", "collective", "kv", "control", "bulk"];
let before = null;

function drawLanes(lanes, now) {
  const names = Object.keys(lanes).sort((a, b) => ORDER.indexOf(a) - ORDER.indexOf(b));
  const gone = before ? (now - before.now) / 1000 : 0;
  const rates = names.map((name) => (gone ? Math.max(0, lanes[name] - (before.lanes[name] ?? 0)) / gone : 0));
  const total = rates.reduce((sum, rate) => sum + rate, 0) || 1;
  const rows = names.map((name, index) => {
    const row = make("tr");
    row.append(cell(name), cell(bytes(lanes[name])), cell(`${bytes(rates[index])}/s`), cell(bar(rates[index] / total, name), "wide"));
    return row;
  });
  if (!rows.length) {
    const row = make("tr"), none = make("td", "No rank has reported traffic yet.", "faint");
    none.colSpan = 4;
    row.append(none);
    rows.push(row);
  }
  at("lanes").tBodies[0].replaceChildren(...rows);
  before = { lanes, now };
}

let model = "";

function draw(stats) {
  model = stats.model;
  at("model").textContent = stats.model;
  at("status").textContent = stats.status;
  at("status").className = `badge ${stats.status}`;
  at("uptime").textContent = `up ${span(stats.uptime_s)}`;
  at("key-label").hidden = !stats.needs_key;
  at("max").max = stats.max_length - 1;
  const last = stats.tokens_per_second.slice(-3);
  at("rate").textContent = `${Math.round(last.reduce((sum, count) => sum + count, 0) / last.length)} tokens/s`;
  drawSpark(stats.tokens_per_second);
  at("ttft").textContent = seconds(stats.first_token_s[0]);
  at("ttft99").textContent = `p99 ${seconds(stats.first_token_s[1])}`;
  at("tpot").textContent = seconds(stats.per_token_s[0]);
  at("tpot99").textContent = `p99 ${seconds(stats.per_token_s[1])}`;
  at("running").textContent = stats.running;
  at("waiting").textContent = `${stats.waiting} requests waiting, ${stats.tokens} tokens so far`;
  at("hidden").textContent = stats.kv_transfer_s ? `${((100 * stats.kv_hidden_s) / stats.kv_transfer_s).toFixed(0)} %` : "–";
  at("moved").textContent = stats.kv_bytes ? `${bytes(stats.kv_bytes)} moved from prefill to decode` : "nothing moved yet";
  at("pools").replaceChildren(...stats.pools.map(drawPool));
  drawLanes(stats.lanes, performance.now());
}

async function refresh() {
  if (!document.hidden) {
    try {
      const response = await fetch("stats", { signal: AbortSignal.timeout(5000) });
      draw(await response.json());
    } catch {
      at("status").textContent = "no answer from the gateway";
      at("status").className = "badge unavailable";
    }
  }
  setTimeout(refresh, 1000);
}

let running = null;

function* events(state, text) {
  state.rest += text;
  const parts = state.rest.split("\n\n");
  state.rest = parts.pop();
  for (const part of parts) if (part.startsWith("data: ") && part !== "data: [DONE]") yield JSON.parse(part.slice(6));
}

async function complete() {
  const answer = at("answer"), begun = performance.now();
  let first = null, count = 0;
  const headers = { "content-type": "application/json" };
  if (at("key").value) headers.authorization = `Bearer ${at("key").value}`;
  const body = {
    model, prompt: at("prompt").value, max_tokens: Number(at("max").value), temperature: Number(at("temperature").value),
    stream: true, stream_options: { include_usage: true },
  };
  const response = await fetch("v1/completions", { method: "POST", headers, body: JSON.stringify(body), signal: running.signal });
  if (!response.ok) throw new Error((await response.json()).error.message);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader(), state = { rest: "" };
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    for (const event of events(state, value)) {
      if (event.error) throw new Error(event.error.message);
      first ??= performance.now();
      if (event.choices.length) answer.textContent += event.choices[0].text;
      if (event.usage) count = event.usage.completion_tokens;
    }
  }
  const total = (performance.now() - begun) / 1000;
  at("timing").textContent = `${count} tokens in ${seconds(total)}, the first after ${seconds((first - begun) / 1000)}`;
}

at("try").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (running) return;
  running = new AbortController();
  at("go").disabled = true;
  at("stop").disabled = false;
  at("answer").textContent = "";
  at("answer").className = "";
  at("timing").textContent = "";
  try {
    await complete();
  } catch (error) {
    if (error.name !== "AbortError") {
      at("answer").className = "error";
      at("answer").textContent += ` ${error.message}`;
    }
  } finally {
    running = null;
    at("go").disabled = false;
    at("stop").disabled = true;
  }
});
at("stop").addEventListener("click", () => running?.abort());
refresh();
