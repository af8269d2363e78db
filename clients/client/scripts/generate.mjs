// Writes src/generated/ from the gateway's documents: types of REST from docs/openapi.json, of events from docs/asyncapi.json.
//
//   node scripts/generate.mjs           writes the files
//   node scripts/generate.mjs --check   fails where they are not what the documents say
//
// It knows the part of JSON Schema that the documents use, and fails on anything else, so that nothing is typed `any` in silence.

import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";

const docs = new URL("../../../docs/", import.meta.url);
const target = new URL("../src/generated/", import.meta.url);
const read = (name) => JSON.parse(readFileSync(new URL(name, docs), "utf8"));

/** What a schema is in TypeScript. */
function type(schema, indent = "") {
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  for (const [key, glue] of [["oneOf", " | "], ["anyOf", " | "], ["allOf", " & "]]) {
    if (schema[key]) return schema[key].map((part) => `(${type(part, indent)})`).join(glue);
  }
  const types = [schema.type ?? []].flat();
  if (types.length === 0) return "unknown";
  return types.map((name) => one(name, schema, indent)).join(" | ");
}

function one(name, schema, indent) {
  switch (name) {
    case "integer":
    case "number":
      return "number";
    case "string":
    case "boolean":
    case "null":
      return name;
    case "array":
      return `readonly (${type(schema.items ?? {}, indent)})[]`;
    case "object":
      return object(schema, indent);
    default:
      throw new Error(`a type that the generator does not know: ${name}`);
  }
}

function object(schema, indent) {
  if (!schema.properties) return "{ readonly [name: string]: unknown }";
  const required = new Set(schema.required);
  const inner = `${indent}  `;
  const members = Object.entries(schema.properties)
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([name, member]) => {
      const key = /^[A-Za-z_]\w*$/.test(name) ? name : JSON.stringify(name);
      return `${comment(member.description, inner)}${inner}readonly ${key}${required.has(name) ? "" : "?"}: ${type(member, inner)};`;
    });
  return `{\n${members.join("\n")}\n${indent}}`;
}

function comment(text, indent = "") {
  return text ? `${indent}/** ${text.replaceAll("*/", "* /").replaceAll("\n", `\n${indent} * `)} */\n` : "";
}

const declare = (name, schema) => `${comment(schema.description)}export type ${name} = ${type(schema)};\n`;
const header = (source) => `// Generated from docs/${source} by scripts/generate.mjs. Do not edit.\n\n`;

function rest() {
  const { components } = read("openapi.json");
  const names = Object.keys(components.schemas).sort();
  return header("openapi.json") + names.map((name) => declare(name, components.schemas[name])).join("\n");
}

function events() {
  const { channels, components, operations } = read("asyncapi.json");
  const shared = new Set(Object.keys(read("openapi.json").components.schemas));
  const own = Object.keys(components.schemas).filter((name) => name !== "Activity").sort();
  const imported = own.filter((name) => shared.has(name));
  let text = header("asyncapi.json");
  text += `import type { ${imported.join(", ")} } from "./rest.js";\n\n`;
  text += own.filter((name) => !shared.has(name)).map((name) => declare(name, components.schemas[name])).join("\n");
  const directions = [
    ["sendToClients", "ServerEvents", "Data of each event from the gateway."],
    ["receiveFromClients", "ClientEvents", "Data of each event to the gateway."],
  ];
  for (const [operation, name, description] of directions) {
    const members = operations[operation].messages
      .map((message) => components.messages[message.$ref.split("/").at(-1)])
      .filter((message) => message.payload.properties?.event?.const)
      .map(({ payload, summary }) => {
        const { event, data } = payload.properties;
        return `${comment(summary, "  ")}  readonly ${JSON.stringify(event.const)}: ${data ? type(data, "  ") : "undefined"};`;
      });
    text += `\n${comment(description)}export interface ${name} {\n${members.join("\n")}\n}\n`;
  }
  const codes = [...channels.stream.description.matchAll(/^\| (\d{4}) \| ?(.*?) ?\|$/gm)];
  const lines = codes.map(([, code, reason]) => `  ${code}: ${JSON.stringify(reason)},`);
  text += `\n/** The reason of each close code. */\nexport const CLOSE_REASONS = {\n${lines.join("\n")}\n} as const;\n`;
  return text;
}

const check = process.argv.includes("--check");
let drifted = false;
for (const [name, text] of [["rest.ts", rest()], ["events.ts", events()]]) {
  const file = new URL(name, target);
  if (check) {
    let present = "";
    try {
      present = readFileSync(file, "utf8");
    } catch {}
    if (present !== text) {
      drifted = true;
      console.error(`src/generated/${name} is not what the documents say: run "npm run generate"`);
    }
  } else {
    mkdirSync(dirname(fileURLToPath(file)), { recursive: true });
    writeFileSync(file, text);
  }
}
if (drifted) process.exitCode = 1;
