// Renders the gateway's own documents. Text is set as text, never as HTML.
"use strict";

/** Makes an element: attributes, then children (nodes, texts, lists, or nothing). */
function el(name, attributes, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** `code` and **strong** within a line. */
function inline(text) {
  return text.split(/(`[^`]+`)/).map((part) => (/^`.+`$/.test(part) ? el("code", null, part.slice(1, -1)) : part));
}

/** Paragraphs, lists and tables of the little Markdown that the documents use. */
function prose(text) {
  const blocks = [];
  for (const block of (text || "").split(/\n\n+/)) {
    const lines = block.split("\n");
    const items = lines.filter((line) => line.startsWith("- "));
    if (lines.length > 1 && lines.every((line) => line.startsWith("|"))) {
      const cells = lines.filter((line) => !/^\|[-|]+\|?$/.test(line)).map((line) => line.split("|").slice(1, -1).map((cell) => inline(cell.trim())));
      blocks.push(table(cells[0], cells.slice(1)));
    } else {
      const plain = lines.filter((line) => !line.startsWith("- ")).join(" ").trim();
      if (plain) blocks.push(el("p", null, inline(plain)));
      if (items.length) blocks.push(el("ul", null, items.map((item) => el("li", null, inline(item.slice(2))))));
    }
  }
  return blocks;
}

function table(head, rows) {
  return el("div", { class: "table" }, el("table", null,
    head && el("thead", null, el("tr", null, head.map((cell) => el("th", null, cell)))),
    el("tbody", null, rows.map((row) => el("tr", null, row.map((cell) => el("td", null, cell)))))));
}

function json(value) {
  return el("pre", null, el("code", null, JSON.stringify(value, null, 2)));
}

const slug = (text) => text.replace(/[^A-Za-z0-9_]+/g, "-").replace(/^-|-$/g, "");

/** A document with its references. */
class Document {
  constructor(root) { this.root = root; }

  resolve(node) {
    let steps = 0;
    while (node && node.$ref && steps++ < 20) {
      node = node.$ref.slice(2).split("/").reduce((at, key) => at && at[key.replaceAll("~1", "/").replaceAll("~0", "~")], this.root);
    }
    return node || {};
  }

  /** A short name of a schema's type. */
  type(schema) {
    if (schema.$ref) {
      const target = this.resolve(schema);
      return target.type === "string" ? "string" : schema.$ref.split("/").pop();
    }
    if (schema.const !== undefined) return JSON.stringify(schema.const);
    if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
    const any = schema.oneOf || schema.anyOf;
    if (any) return any.map((one) => this.type(one)).join(" | ");
    if (schema.allOf) return "object";
    const types = [].concat(schema.type || "any");
    return types.map((type) => (type === "array" ? `${this.type(schema.items || {})}[]` : type)).join(" | ");
  }

  /** Members of an object, those of `allOf` included. */
  members(schema, required = new Set()) {
    const at = this.resolve(schema);
    (at.required || []).forEach((name) => required.add(name));
    const own = Object.entries(at.properties || {}).map(([name, value]) => ({ name, value }));
    const inherited = (at.allOf || []).flatMap((part) => this.members(part, required).list);
    return { list: [...inherited, ...own], required };
  }

  limits(schema) {
    const at = this.resolve(schema);
    const named = [["minimum", "≥"], ["maximum", "≤"], ["minLength", "length ≥"], ["maxLength", "length ≤"], ["minItems", "items ≥"], ["maxItems", "items ≤"]];
    const parts = named.filter(([key]) => at[key] !== undefined).map(([key, sign]) => `${sign} ${at[key]}`);
    if (at.default !== undefined) parts.push(`default ${JSON.stringify(at.default)}`);
    if (at.format && at.format !== "int64" && at.format !== "int32") parts.push(at.format);
    return parts.join(", ");
  }

  describe(schema, depth = 0) {
    const at = this.resolve(schema);
    if (at.oneOf) return at.oneOf.map((one, index) => [index ? el("p", { class: "lead" }, "or") : null, this.describe(one, depth)]);
    const { list, required } = this.members(schema);
    if (!list.length) return [el("p", { class: "type" }, this.type(schema))];
    return [table(null, list.map(({ name, value }) => {
      const inner = value.type === "array" || (value.items && [].concat(value.type).includes("array")) ? value.items : value;
      const nested = depth < 2 && this.members(inner).list.length > 0;
      const limits = this.limits(value);
      return [
        [el("code", null, name), required.has(name) ? el("span", { class: "required" }, "required") : null],
        el("span", { class: "type" }, this.type(value)),
        [prose(value.description || this.resolve(value).description), limits ? el("span", { class: "type" }, limits) : null,
          nested ? el("details", null, el("summary", null, "members"), this.describe(inner, depth + 1)) : null],
      ];
    }))];
  }

  example(schema, depth = 0) {
    const at = this.resolve(schema);
    if (at.example !== undefined) return at.example;
    if (at.examples && at.examples.length) return at.examples[0];
    if (at.const !== undefined) return at.const;
    if (at.enum) return at.enum[0];
    if (at.default !== undefined) return at.default;
    const { list } = this.members(schema);
    if (list.length && depth < 4) return Object.fromEntries(list.map(({ name, value }) => [name, this.example(value, depth + 1)]));
    const type = [].concat(at.type || "null")[0];
    return { string: at.format === "date-time" ? "2026-11-23T08:00:00.000Z" : "text", integer: 1, number: 1, boolean: true, array: at.items ? [this.example(at.items, depth + 1)] : [], object: {} }[type] ?? null;
  }
}

function card(id, verb, verbText, title, note, ...body) {
  return el("article", { id }, el("header", null, verb && el("span", { class: `verb ${verb}` }, verbText), el("h3", { class: verb ? "path" : "" }, title),
    note && el("span", { class: "note" }, note)), el("div", { class: "body" }, ...body));
}

function operation(doc, path, method, op) {
  const body = op.requestBody && Object.values(op.requestBody.content)[0];
  const who = (op.security || []).flatMap((one) => Object.keys(one)).map((name) => ({ bearer: "Bearer", basic: "Basic" })[name] || name).join(" or ");
  const responses = Object.entries(op.responses).sort(([a], [b]) => a - b).map(([status, response]) => {
    const at = doc.resolve(response);
    const content = Object.values(at.content || {})[0];
    const codes = content && content.examples && Object.keys(content.examples);
    return { status, at, content, codes };
  });
  const good = responses.find(({ status, content }) => status < 300 && content && content.schema && (content.schema.$ref || content.schema.properties));
  return card(slug(op.operationId), method, method, path, who || "anyone",
    el("p", null, inline(op.summary || "")), prose(op.description),
    (op.parameters || []).length > 0 && [el("h4", null, "Parameters"), table(null, op.parameters.map((parameter) => [
      [el("code", null, parameter.name), parameter.required ? el("span", { class: "required" }, "required") : null],
      el("span", { class: "type" }, `${doc.type(parameter.schema)} in ${parameter.in}`),
      [prose(parameter.description), el("span", { class: "type" }, doc.limits(parameter.schema))],
    ]))],
    body && [el("h4", null, "Body"), prose(doc.resolve(body.schema).description), doc.describe(body.schema), json(doc.example(body.schema))],
    el("h4", null, "Answers"),
    table(null, responses.map(({ status, at, codes }) => [
      el("span", { class: `status ${status < 400 ? "good" : "bad"}` }, status),
      codes ? codes.map((code, index) => [index ? ", " : "", el("a", { href: `#${code}` }, code)]) : at.description,
    ])),
    good && [el("h4", null, `Body of ${good.status}`), doc.describe(good.content.schema), json(doc.example(good.content.schema))]);
}

function problems(doc) {
  const rows = Object.values(doc.root.components.responses || {}).flatMap((response) => Object.values(response.content || {}))
    .flatMap((content) => Object.entries(content.examples || {}))
    .map(([code, example]) => ({ code, status: example.value.status, title: example.value.title })).sort((a, b) => a.status - b.status);
  return el("section", { id: "problems" }, el("h2", null, "Problems"),
    el("p", { class: "lead" }, "Errors are application/problem+json (RFC 9457); programs compare code."),
    table(["Status", "Code", "Title"], rows.map(({ code, status, title }) => [el("span", { class: "status bad" }, String(status)), el("code", { id: code }, code), title])),
    json(doc.example({ $ref: "#/components/schemas/Problem" })));
}

function message(doc, id, verb, verbText, at) {
  const payload = doc.resolve(at.payload);
  const enveloped = payload.properties && payload.properties.event && payload.required.includes("event");
  const shape = enveloped ? payload.properties.data : at.payload;
  const example = (at.examples || [])[0];
  return card(id, verb, verbText, at.name, null, el("p", null, inline(at.summary || "")), prose(at.description),
    shape && Object.keys(shape).length > 0 && [el("h4", null, enveloped ? "data" : "Value"), doc.describe(shape)], example && json(example.payload));
}

function renderRest(doc, main, contents) {
  const { info, tags, paths } = doc.root;
  document.getElementById("version").textContent = info.version;
  main.append(el("h1", null, info.title), ...prose(info.description),
    el("p", null, el("a", { href: "/openapi.json" }, "/openapi.json"), " · ", el("a", { href: "/asyncapi.json" }, "/asyncapi.json")));
  for (const tag of tags) {
    const section = el("section", { id: `tag-${tag.name}` }, el("h2", null, tag.name), el("p", { class: "lead" }, tag.description));
    const links = el("ul");
    for (const [path, item] of Object.entries(paths)) {
      for (const method of ["get", "post", "patch", "delete"].filter((method) => item[method] && item[method].tags[0] === tag.name)) {
        section.append(operation(doc, path, method, item[method]));
        links.append(el("li", null, el("a", { href: `#${slug(item[method].operationId)}` }, el("span", { class: `verb ${method}` }, method), path.replace("/socket/websocket", "…"))));
      }
    }
    main.append(section);
    contents.append(el("h2", null, tag.name), links);
  }
  main.append(problems(doc));
  contents.append(el("h2", null, "errors"), el("ul", null, el("li", null, el("a", { href: "#problems" }, "All problems"))));
}

function renderEvents(doc, main, contents) {
  const { channels, operations } = doc.root;
  const key = (reference) => reference.$ref.split("/").pop();
  const order = Object.entries(channels).sort(([a], [b]) => (b === "stream") - (a === "stream"));
  for (const [name, channel] of order) {
    const section = el("section", { id: `channel-${name}` }, el("h2", null, channel.title), el("p", { class: "lead" }, el("code", null, channel.address)));
    const links = el("ul");
    const mine = Object.values(operations).filter((op) => key(op.channel) === name);
    for (const [id, reference] of Object.entries(channel.messages)) {
      const actions = mine.filter((op) => op.messages.some((one) => key(one) === id)).map((op) => op.action);
      const verb = actions.length > 1 ? "both" : actions[0];
      const text = name !== "stream" ? "record" : { send: "to client", receive: "from client", both: "both ways" }[verb];
      const at = doc.resolve(reference);
      section.append(message(doc, `event-${id}`, verb, text, at));
      links.append(el("li", null, el("a", { href: `#event-${id}` }, el("span", { class: `verb ${verb}` }, { send: "↓", receive: "↑", both: "↕" }[verb]), at.name)));
    }
    section.append(...prose(channel.description));
    main.append(section);
    contents.append(el("h2", null, channel.title), links);
  }
}

function filterBy(contents, text) {
  for (const list of contents.querySelectorAll("ul")) {
    let shown = 0;
    for (const item of list.children) {
      const fits = item.textContent.toLowerCase().includes(text);
      item.classList.toggle("hidden", !fits);
      shown += fits;
    }
    list.previousElementSibling.classList.toggle("hidden", shown === 0);
  }
}

async function load(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path} answered ${answer.status}`);
  return new Document(await answer.json());
}

async function start() {
  const main = document.getElementById("main");
  const contents = document.getElementById("contents");
  const state = document.getElementById("state");
  try {
    const [rest, events] = await Promise.all([load("/openapi.json"), load("/asyncapi.json")]);
    state.remove();
    renderRest(rest, main, contents);
    renderEvents(events, main, contents);
    document.getElementById("filter").addEventListener("input", (event) => filterBy(contents, event.target.value.trim().toLowerCase()));
    if (location.hash) document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView({ behavior: "instant" });
  } catch (error) {
    state.textContent = `The documents could not be shown: ${error.message}`;
  }
}

start();
