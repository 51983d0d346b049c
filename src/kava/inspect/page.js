"use strict";
// Everything shown is in the JSON above; text goes into the page as text alone, never as markup.
const look = JSON.parse(document.getElementById("look").textContent);

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "v" || name === "colour") node.style.setProperty("--" + name, value);
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

const percent = (p) => (100 * p).toFixed(p >= 0.0995 ? 0 : 1);
const sum = (values) => values.reduce((a, b) => a + b, 0);
const mean = (values) => sum(values) / values.length;
const range = (n) => Array.from({ length: n }, (_, i) => i);
// A blank or a line's end alone would not be seen.
const shown = (text) => text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/^ +| +$/g, (s) => "␣".repeat(s.length)) || "∅";
function brief(value) {
  if (Math.abs(value) >= 9.995) return value.toFixed(0);
  if (Math.abs(value) < 0.005) return ".00";
  return value.toFixed(Math.abs(value) >= 0.995 ? 1 : 2).replace(/^(-?)0\./, "$1.");
}

// -- one tooltip for all: by mouse and by keyboard; the title stays for those who have neither ----

const tip = document.getElementById("tip");
let told = null;
function tell(event) {
  const node = event.target.closest("[data-tip]");
  // What has the focus keeps its words until the mouse meets others: it may scroll away by itself.
  if (node === told || (!node && focused())) return;
  hush();
  if (!node) return;
  told = node;
  node.removeAttribute("title");
  tip.textContent = node.dataset.tip;
  tip.hidden = false;
  place();
}
const focused = () => told !== null && told === document.activeElement;
function place() {
  const at = told.getBoundingClientRect(), size = tip.getBoundingClientRect();
  const below = at.bottom + 8 + size.height < innerHeight;
  tip.style.top = Math.max(4, below ? at.bottom + 8 : at.top - size.height - 8) + "px";
  tip.style.left = Math.max(4, Math.min(at.left, innerWidth - size.width - 8)) + "px";
}
function hush() {
  if (told) told.setAttribute("title", told.dataset.tip);
  told = null;
  tip.hidden = true;
}
let rested = "";
document.addEventListener("pointermove", (event) => {
  // Where the page scrolls under a mouse at rest, browsers tell of a movement that was none.
  const at = `${event.screenX} ${event.screenY}`;
  if (at !== rested) tell(event);
  rested = at;
});
document.addEventListener("focusin", tell);
document.addEventListener("focusout", hush);
document.addEventListener("scroll", () => (told && (focused() || told.matches(":hover")) ? place() : hush()), true);
document.addEventListener("keydown", (event) => { if (event.key === "Escape") hush(); });
const tipped = (text) => ({ "data-tip": text, title: text, tabindex: -1 });

// Arrow keys move inside a grid; Tab reaches it once.
function walkable(grid, selector) {
  const rows = [...grid.querySelectorAll("tr, li")].map((row) => [...row.querySelectorAll(selector)]).filter((r) => r.length);
  if (rows.length) rows[0][0].tabIndex = 0;
  grid.addEventListener("keydown", (event) => {
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    const at = rows.findIndex((row) => row.includes(event.target));
    if (!step || at < 0) return;
    const row = rows[at + step[0]];
    const next = row && row[Math.min(rows[at].indexOf(event.target) + step[1], row.length - 1)];
    if (!next) return;
    event.preventDefault();
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
  return grid;
}

// How strongly a cell is coloured decides whether dark or light text is easier to read on it.
const inked = (v) => (v > 0.88 ? " strong stronger" : v > 0.6 ? " strong" : "");
function scrolling(name, table) {
  table.setAttribute("aria-label", name);
  // The caption stands outside, so that it stays in sight where the table is wider than the page.
  return el("div", {}, el("p", { class: "caption" }, name), el("div", { class: "scroll", role: "region", "aria-label": name, tabindex: 0 }, table));
}

function chooser(label, options, onchange) {
  const select = el("select", { onchange: () => onchange(select.value) }, options.map(([value, text]) => el("option", { value }, text)));
  return [el("label", {}, label, select), select];
}

/* A heat map as a table. rows: [{name, values, mean}]; values hold null where there is nothing.
   both: from -limit to limit with two hues, else from 0 to limit with one. */
function heat({ caption, corner, columns, rows, limit, both, tip: words, text = brief, none }) {
  const cells = (row) => row.values.map((value, i) => {
    if (value === null) return el("td", { class: "none", ...tipped(none) }, "–");
    const v = Math.min(Math.abs(value) / (limit || 1), 1);
    const colour = both && value < 0 ? { colour: "var(--below)" } : {};
    return el("td", { class: "cell" + inked(v), v: v.toFixed(3), ...colour, ...tipped(words(row, i, value)) }, text(value));
  });
  const table = el("table", {},
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, corner), columns.map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, rows.map((row) => el("tr", row.mean ? { class: "mean" } : {}, el("th", { scope: "row" }, row.name), cells(row)))));
  return scrolling(caption, walkable(table, "td"));
}
const legend = (low, high, both) => el("p", { class: "legend" }, low, el("span", { class: "bar" + (both ? " both" : "") }), high);

// -- panels ----------------------------------------------------------------------------------------

const panels = [];
function panel(id, title, lead, content, draw) {
  const section = el("section", { id, "aria-labelledby": id + "-title" }, el("h2", { id: id + "-title" }, title), el("p", { class: "lead" }, lead));
  if (content && "reason" in content) section.append(el("p", { class: "absent" }, "Not here: " + content.reason + "."));
  else section.append(...draw(content));
  panels.push([id, title]);
  document.querySelector("main").append(section);
}
function redrawn(draw) {
  const place = el("div");
  const again = () => { hush(); place.replaceChildren(...draw()); };
  again();
  return [place, again];
}
const numbered = (count) => range(count).map((i) => String(i + 1));
const after = (t) => (look.decoded.iterates ? (t ? "iteration " + t : "iteration 0 (no thought yet)") : "its own call");

function header() {
  const about = look.about, facts = [];
  const verdict = look.right === null ? null : el("span", { class: look.right ? "right" : "wrong" }, look.right ? " ✓ right" : " ✗ wrong, it is " + look.gold);
  facts.push(["answered", [look.answer || "(nothing)", verdict]]);
  facts.push(["method", about.method]);
  facts.push(["latents", String(about.latents)]);
  if (about.iterations !== null) facts.push(["iterations", String(about.iterations)]);
  facts.push(["forward passes", String(about.forward_passes)]);
  facts.push(["backbone", `${about.layers} layers, ${about.heads} key/value head${about.heads > 1 ? "s" : ""}`]);
  if (about.run) facts.push(["run", about.run]);
  document.getElementById("top").append(
    el("h1", {}, "kava inspect: what the latents of one question hold"),
    el("p", { class: "question" }, look.question),
    el("dl", { class: "facts" }, facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))));
  document.title = "kava inspect: " + look.question;
}

function writtenSteps() {
  const trace = look.trace, list = el("ol", { class: "steps" });
  trace.steps.forEach((step, i) => list.append(el("li", { class: i < trace.read ? null : "dropped" }, step)));
  return [
    el("h3", {}, "The chain of thought"),
    trace.steps.length ? list : el("p", {}, "(none)"),
    el("p", {}, "Answer: ", el("code", {}, trace.answer || "(none)")),
    el("p", {}, trace.told),
  ];
}

function drawDecoded(decoded) {
  const passes = decoded.passes, last = passes.length - 1, count = passes[0].length;
  let view = passes.length > 1 ? "all" : "0";
  const words = (top) => top.map(([text, p]) => `${(100 * p).toFixed(2).padStart(6)} %  ${shown(text)}`).join("\n");
  // A latent that has not begun in a pass decodes to nothing, with a probability of 0.
  const cell = ([text, p], top, where, early) => p === 0 ? el("td", {}) : el("td", { class: "word" + (early ? " early" : ""), v: p.toFixed(3), ...(early ? { colour: "var(--below)" } : {}), ...tipped(where + "\n" + words(top)) }, el("div", {}, shown(text), el("span", {}, p.toFixed(2))));
  const early = (t, i) => passes[t][i][0][0] !== passes[last][i][0][0];
  const [place, again] = redrawn(() => {
    const all = view === "all", t = all ? last : Number(view);
    const columns = all ? passes.map((_, i) => (i === last ? `iteration ${i} (last)` : "iteration " + i)) : ["likeliest", "2nd", "3rd", "4th", "5th"];
    const caption = all ? "The likeliest token of each latent after each iteration, with its probability" : "Five likeliest tokens of each latent after " + after(t);
    const rows = range(count).map((i) => el("tr", {}, el("th", { scope: "row" }, String(i + 1)), all
      ? passes.map((one, n) => cell(one[i][0], one[i], `latent ${i + 1} after ${after(n)}`, early(n, i)))
      : passes[t][i].map((token) => cell(token, passes[t][i], `latent ${i + 1} after ${after(t)}`))));
    const table = el("table", { class: "wide" },
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "latent"), columns.map((name) => el("th", { scope: "col" }, name)))), el("tbody", {}, rows));
    const key = (colour, text) => { const swatch = el("span", { class: "swatch" }); swatch.style.background = colour; return el("span", {}, swatch, text); };
    const mixed = (name) => `color-mix(in oklab, var(--${name}) 34%, var(--zero))`;
    return [scrolling(caption, walkable(table, "td")), all ? el("p", { class: "legend" }, key(mixed("hue"), "the token of the last iteration"), key(mixed("below"), "another token, in italics"), "stronger is likelier") : ""];
  });
  const [reading, reread] = redrawn(() => {
    const t = view === "all" ? last : Number(view);
    return [el("h3", {}, "The latents read in order"), el("p", {}, `Likeliest tokens after ${after(t)}:`), el("div", { class: "reading count" }, passes[t].map((top) => top[0][0]).join(""))];
  });
  const options = passes.length > 1 ? [["all", "every iteration, the likeliest"]] : [];
  passes.forEach((_, t) => options.push([String(t), decoded.iterates ? `iteration ${t}, top 5` : "top 5"]));
  const [label] = chooser("Show", options, (value) => { view = value; again(); reread(); });
  return [el("div", { class: "controls" }, label), el("div", { class: "side" }, place, el("aside", {}, writtenSteps(), reading))];
}

function drawMovement(moved) {
  let measure = "distance";
  const names = { distance: "relative distance |X′ − X| / |X|", cosine: "cosine of X and X′" };
  const [place, again] = redrawn(() => {
    const values = moved[measure], both = measure === "cosine";
    const limit = both ? 1 : Math.max(...values.flat());
    const rows = values.map((row, t) => ({ name: `${t} → ${t + 1}`, values: row }));
    const columns = ["mean", ...numbered(values[0].length)];
    rows.forEach((row, t) => { row.values = [moved["mean_" + measure][t], ...row.values]; });
    return [
      heat({ caption: `Each latent's input, from one pass to the next: ${names[measure]}`, corner: "iteration", columns, rows, limit, both,
        tip: (row, i, value) => `${i ? "latent " + i : "mean over latents"}, iteration ${row.name}\n${names[measure]}: ${value}` }),
      legend(both ? "−1" : "0", both ? "1" : brief(limit), both),
    ];
  });
  const [label] = chooser("Measure", Object.entries(names), (value) => { measure = value; again(); });
  return [el("div", { class: "controls" }, label), place];
}

function drawSimilarity(similar) {
  let head = "mean";
  const heads = similar.keys.heads[0].length, layers = similar.keys.layers.length;
  const of = (part) => {
    const rows = range(layers).map((l) => ({ name: "layer " + (l + 1), values: head === "mean" ? part.layers[l] : part.heads[l][Number(head)] }));
    const slots = rows[0].values.map((_, i) => (rows.some((row) => row.values[i] === null) ? null : mean(rows.map((row) => row.values[i]))));
    return [{ name: "mean", values: head === "mean" ? part.slots : slots, mean: true }, ...rows];
  };
  const [place, again] = redrawn(() => ["keys", "values"].flatMap((name) => {
    const rows = of(similar[name]), whole = mean(rows[0].values.filter((value) => value !== null));
    return [
      el("h3", {}, `${name[0].toUpperCase() + name.slice(1)}: ${whole.toFixed(3)} on average`),
      heat({ caption: `Cosine of the student's and the teacher's ${name}, ${head === "mean" ? "mean over heads" : "head " + (Number(head) + 1)}`, corner: "slot", columns: numbered(rows[0].values.length), rows, limit: 1, both: true,
        none: "no reasoning token in this slot", tip: (row, i, value) => `slot ${i + 1}, ${row.name === "mean" ? "mean over layers" : row.name}${keptAt(row, i, head)}\ncosine of ${name}: ${value.toFixed(4)}` }),
    ];
  }));
  const passes = similar.keys.passes.map((key, t) => `${look.decoded.iterates ? t : "the only pass"}: ${key.toFixed(2)} and ${similar.values.passes[t].toFixed(2)}`);
  const [label] = chooser("Head", [["mean", "mean over heads"], ...range(heads).map((h) => [String(h), "head " + (h + 1)])], (value) => { head = value; again(); });
  return [
    el("div", { class: "controls" }, label), place, legend("−1", "1", true),
    el("p", { class: "note" }, "Mean cosine of keys and values after iteration ", passes.join("; "), ". ", similar.notes.join(" ")),
  ];
}
function keptAt(row, slot, head) {
  if (head === "mean" || row.name === "mean" || "reason" in look.kept) return "";
  const column = look.kept.columns[Number(row.name.split(" ")[1]) - 1][Number(head)][slot];
  return column === null ? "" : `\nthe teacher's token there: ${shown(look.kept.tokens[column][0])} (number ${column + 1})`;
}

function drawKept(kept) {
  const names = Object.keys(kept.numbers), layers = kept.columns.length, heads = kept.columns[0].length, count = kept.tokens.length;
  let which = "all";
  const all = range(layers).flatMap((l) => range(heads).map((h) => [l, h]));
  const held = all.map(([l, h]) => new Set(kept.columns[l][h].filter((c) => c !== null)));
  const chosen = () => (which === "all" ? all : [which.split(",").map(Number)]);
  const keeps = (l, h, c) => held[l * heads + h].has(c);
  const value = (name, l, h, c) => kept.numbers[name][l][h][c];
  const share = (some, c) => mean(some.map(([l, h]) => (keeps(l, h, c) ? 1 : 0)));
  const everything = held.every((one) => one.size === count);
  let colour = everything && names.length ? names[0] : "kept"; // one colour for all tokens says nothing
  // Shades are between the smallest and the largest number of the same head.
  const spans = {};
  for (const name of names) spans[name] = all.map(([l, h]) => { const v = kept.numbers[name][l][h].filter((x) => x !== null); return [Math.min(...v), Math.max(...v)]; });
  const shade = (l, h, c) => {
    if (colour === "kept") return keeps(l, h, c) ? 1 : 0;
    const number = value(colour, l, h, c), [low, high] = spans[colour][l * heads + h];
    return number === null || high === low ? 0 : (number - low) / (high - low);
  };
  const words = (some, c) => {
    const one = some.length === 1 ? some[0] : null, lines = [`${shown(kept.tokens[c][0])}  (token ${c + 1}, step ${kept.tokens[c][1] + 1})`];
    lines.push(one ? (keeps(...one, c) ? "kept" : "evicted") + ` by layer ${one[0] + 1}, head ${one[1] + 1}` : `kept by ${sum(some.map(([l, h]) => (keeps(l, h, c) ? 1 : 0)))} of ${some.length} heads`);
    for (const name of names) {
      const found = some.map(([l, h]) => value(name, l, h, c)).filter((x) => x !== null);
      lines.push(`${name}${one ? "" : ", mean"}: ${found.length ? Number(mean(found).toPrecision(4)) : "none (in no block of slots)"}`);
    }
    return lines.join("\n");
  };
  const hue = () => (colour === "kept" ? { colour: "var(--kept)" } : {});
  const [text, retext] = redrawn(() => {
    const some = chosen(), lines = new Map();
    kept.tokens.forEach(([piece, step], c) => {
      const v = mean(some.map(([l, h]) => shade(l, h, c))), part = share(some, c);
      const token = el("span", { class: `token${part > 0 ? " kept" : " gone"}${inked(v)}`, v: v.toFixed(3), ...hue(), ...tipped(words(some, c)) }, shown(piece));
      if (!lines.has(step)) lines.set(step, []);
      lines.get(step).push(token);
    });
    return [walkable(el("ul", { class: "trace", "aria-label": "The reasoning tokens" }, [...lines].map(([step, tokens]) => el("li", {}, el("span", {}, "step " + (step + 1)), el("span", {}, tokens)))), ".token")];
  });
  const [map, remap] = redrawn(() => {
    const caption = "Every head: a row for each, a column for each reasoning token";
    const row = ([l, h]) => el("tr", {},
      el("th", { scope: "row" }, el("button", { class: "head", type: "button", "aria-pressed": String(which === `${l},${h}`), onclick: () => { which = which === `${l},${h}` ? "all" : `${l},${h}`; select.value = which; retext(); remap(); } }, `layer ${l + 1}, head ${h + 1}`)),
      range(count).map((c) => { const v = shade(l, h, c); return el("td", { class: "cell" + inked(v), v: v.toFixed(3), ...hue(), ...tipped(words([[l, h]], c)) }, keeps(l, h, c) ? "●" : "·"); }));
    const table = el("table", { class: "dense" }, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "token"), kept.tokens.map(([piece]) => el("th", { scope: "col", class: "count" }, shown(piece))))), el("tbody", {}, all.map(row)));
    return [scrolling(caption, walkable(table, "td"))];
  });
  const redraw = () => { retext(); remap(); };
  const [label, select] = chooser("Head", [["all", "every head together"], ...all.map(([l, h]) => [`${l},${h}`, `layer ${l + 1}, head ${h + 1}`])], (v) => { which = v; redraw(); });
  const [second, by] = chooser("Colour by", [["kept", "kept or evicted"], ...names.map((n) => [n, n])], (v) => { colour = v; redraw(); });
  by.value = colour;
  const slots = kept.blocks > 1 ? `${kept.blocks} blocks of ${kept.budget} slots, one for each step` : `${kept.budget} slots`;
  const unlike = "redundancy is high where a key is unlike the others (R of the paper)";
  const how = {
    rkv: `score = λ importance + (1 − λ) redundancy, λ ${kept.lam}; importance is the answer's attention, ${unlike}`,
    rkv_decoding: `score = λ importance − (1 − λ) redundancy, λ ${kept.lam}; redundancy is high where a key is repeated`,
    attention: "score = importance, the answer's attention",
    cosine: `score = redundancy; ${unlike}`,
  }[kept.eviction];
  const lacking = ["importance", "redundancy"].filter((name) => !names.includes(name));
  return [
    el("p", { class: "note" }, `${count} tokens, ${slots} in each head. Eviction ${kept.eviction}${how ? ": " + how : ""}.${everything ? " All tokens fit, so nothing is evicted here." : ""}`, lacking.length ? ` This eviction has no ${lacking.join(" and no ")}.` : "", " ", kept.notes.join(" ")),
    el("div", { class: "controls" }, label, second), text, map,
    el("p", { class: "legend" }, "● kept  · evicted; shades of a number are from the smallest to the largest of its head"),
  ];
}

function drawAttended(paid) {
  let token = 0, head = "mean";
  const layers = paid.layers[0].length, heads = paid.heads[0][0].length;
  const shares = el("table", { class: "shares" },
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "token"), paid.parts.map((name, i) => { const s = el("span", { class: "swatch" }); s.style.background = `var(--part-${i})`; return el("th", { scope: "col" }, s, name); }), el("th", { scope: "col" }, "together"))),
    el("tbody", {}, paid.tokens.map((text, a) => el("tr", {}, el("th", { scope: "row", class: "count" }, shown(text)), paid.shares[a].map((p) => el("td", {}, percent(p))),
      el("td", {}, el("div", { class: "stack", "aria-hidden": "true" }, paid.shares[a].map((p, i) => { const part = el("i"); part.style.width = 100 * p + "%"; part.style.background = `var(--part-${i})`; return part; })))))));
  const [place, again] = redrawn(() => {
    const rows = range(layers).map((l) => ({ name: "layer " + (l + 1), values: head === "mean" ? paid.layers[token][l] : paid.heads[token][l][Number(head)] }));
    const average = head === "mean" ? paid.latents[token] : rows[0].values.map((_, i) => mean(rows.map((row) => row.values[i])));
    rows.unshift({ name: "mean", values: average, mean: true });
    const limit = Math.max(...rows.flatMap((row) => row.values));
    return [
      heat({ caption: `Percent of the attention of ${shown(paid.tokens[token])} that each latent gets, ${head === "mean" ? "mean over heads" : "head " + (Number(head) + 1)}`, corner: "latent", columns: numbered(average.length), rows, limit, text: (v) => percent(v),
        tip: (row, i, value) => `latent ${i + 1}, ${row.name === "mean" ? "mean over layers" : row.name}\n${(100 * value).toPrecision(3)} % of the attention\ndecodes to ${shown(look.decoded.passes[look.decoded.passes.length - 1][i][0][0])}` }),
      legend("0", percent(limit) + " %", false),
    ];
  });
  const [first] = chooser("Token", paid.tokens.map((text, a) => [String(a), `${shown(text)}${a ? "" : " (asks for the answer)"}`]), (v) => { token = Number(v); again(); });
  const query = (h) => `head ${h + 1}${paid.group > 1 ? ` (of key/value head ${Math.floor(h / paid.group) + 1})` : ""}`;
  const [second] = chooser("Head", [["mean", "mean over heads"], ...range(heads).map((h) => [String(h), query(h)])], (v) => { head = v; again(); });
  return [scrolling("Where each token of the answer looks (mean over layers and heads, in percent)", shares), el("h3", {}, "Latent by latent"), el("div", { class: "controls" }, first, second), place];
}

header();
panel("decoded", "What each latent decodes to", "Each latent's last state, read by the model's own language-model head, after each iteration.", look.decoded, drawDecoded);
panel("movement", "How far latents move", "When the latents have settled, another iteration changes little.", look.movement, drawMovement);
panel("similarity", "Student and teacher, slot by slot", "The keys and values of the latents after the last iteration, against those of the chain of thought in the teacher's compressed cache.", look.similarity, drawSimilarity);
panel("kept", "Which reasoning tokens each head keeps", "The teacher's cache of the chain of thought is compressed to as many tokens as there are latents, separately in each head.", look.kept, drawKept);
panel("attended", "Where the answer looks", "Attention of the answer's first tokens over everything before them. The “:” is the one that asks for the answer.", look.attended, drawAttended);
document.querySelector("nav").append(...panels.map(([id, title]) => el("a", { href: "#" + id }, title)));
document.querySelector("footer").append(`Backbone ${look.about.backbone}. Every number of this page is in it as JSON (element “look”). Nothing is loaded from elsewhere.`);
