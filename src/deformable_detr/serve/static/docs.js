"use strict";
// The server's OpenAPI as a page, drawn from openapi.json: FastAPI's own page loads its parts from the internet.

const get = id => document.getElementById(id);
function make(tag, text, kind) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (kind) element.className = kind;
  return element;
}
function table(rows) {
  const whole = make("table");
  for (const cells of rows) {
    const line = make("tr");
    cells.forEach((cell, i) => {
      const box = make(i ? "td" : "th");
      box.append(i ? make("span", cell) : make("code", cell));
      line.append(box);
    });
    whole.append(line);
  }
  return whole;
}
function resolve(api, schema) {
  return schema && schema.$ref ? schema.$ref.slice(2).split("/").reduce((part, name) => part[name], api) : schema;
}
function example(api, given, depth = 0) {
  // What a schema looks like as JSON, with the meanings in the place of values.
  const schema = resolve(api, given);
  if (!schema || depth > 6) return "…";
  const one = (schema.anyOf || []).find(each => each.type !== "null");
  if (one) return example(api, { description: schema.description, ...one }, depth);
  if (schema.enum) return schema.enum.join(" | ");
  if (schema.properties) {
    return Object.fromEntries(Object.entries(schema.properties).map(([name, part]) => [name, example(api, part, depth + 1)]));
  }
  if (schema.prefixItems) return schema.description || schema.prefixItems.map(each => each.type);
  if (schema.type === "array") {
    const item = example(api, schema.items, depth + 1);
    return typeof item === "object" && !Array.isArray(item) ? [item] : `[${schema.description || item}]`;
  }
  return schema.description ? `${schema.type}: ${schema.description}` : schema.type || "…";
}
function range(schema) {
  const plain = (schema.anyOf || []).find(each => each.type !== "null") || schema;
  const parts = [plain.type === "array" ? `${plain.items.type}, several` : plain.type];
  if (plain.minimum !== undefined) parts.push(`from ${plain.minimum} to ${plain.maximum}`);
  if (schema.default !== undefined && schema.default !== null) parts.push(`default ${schema.default}`);
  return parts.join(", ");
}
function content(api, title, contents) {
  const parts = [];
  for (const [kind, { schema }] of Object.entries(contents || {})) {
    const shown = example(api, schema);
    parts.push(make("h3", `${title}: ${kind}`),
               make("pre", typeof shown === "string" ? shown : JSON.stringify(shown, null, 2)));
  }
  return parts;
}
function operation(api, path, method, about) {
  const section = make("section"), head = make("h2");
  head.append(make("span", method.toUpperCase(), "method"), make("code", path));
  section.append(head, make("p", about.summary));
  if (about.parameters) {
    section.append(make("h3", "parameters"),
      table(about.parameters.map(p => [p.name, range(p.schema), p.description || p.schema.description || ""])));
  }
  if (about.requestBody) section.append(...content(api, "body", about.requestBody.content));
  section.append(...content(api, "answer", about.responses[200].content));
  const others = Object.entries(about.responses).filter(([status]) => status !== "200");
  if (others.length) {
    const more = make("details");
    more.append(make("summary", "when there is no result"),
      table(others.map(([status, response]) => [status, response.description])));
    section.append(more);
  }
  return section;
}
fetch("openapi.json", { credentials: "omit" }).then(answer => answer.json()).then(api => {
  get("title").textContent = `${api.info.title} ${api.info.version}`;
  get("about").textContent = api.info.description;
  for (const [path, methods] of Object.entries(api.paths))
    for (const [method, about] of Object.entries(methods)) get("operations").append(operation(api, path, method, about));
  document.body.dataset.ready = "true";
}).catch(() => { get("about").textContent = "openapi.json cannot be read: is the server still running?"; });
