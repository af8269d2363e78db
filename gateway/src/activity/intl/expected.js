// What `Intl` of Node writes, for the tests of this folder: `TZ=UTC node expected.js > expected.tsv`, with Node 20 (ICU 78, CLDR 48).
// One line each: kind, locale, options as a catalog has them, value, text. Spaces and marks that nobody sees are written by their numbers.
const locales = ["vi", "en", "de", "fr"];
const numbers = ["0", "-1234.5", "1234567.891", "0.5", "2.5", "-2.5", "1.005", "9007199254740993", "12345678901234567890.125"];
const numberOptions = [
  {}, {useGrouping: "min2"}, {useGrouping: "auto"},
  {minimumFractionDigits: 2}, {maximumFractionDigits: 0}, {minimumFractionDigits: 2, maximumFractionDigits: 2}, {maximumFractionDigits: 8},
  {minimumIntegerDigits: 3}, {maximumSignificantDigits: 3}, {minimumSignificantDigits: 5}, {minimumSignificantDigits: 2, maximumSignificantDigits: 4},
  {roundingMode: "halfEven", maximumFractionDigits: 0}, {roundingMode: "floor", maximumFractionDigits: 1}, {roundingMode: "ceil", maximumFractionDigits: 0}, {roundingMode: "trunc", maximumFractionDigits: 0},
  {signDisplay: "always"}, {signDisplay: "exceptZero"}, {signDisplay: "never"}, {signDisplay: "negative"},
  {trailingZeroDisplay: "stripIfInteger", minimumFractionDigits: 2},
  {style: "percent"}, {style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 2}, {style: "percent", maximumFractionDigits: 1},
  {style: "currency", currency: "VND"}, {style: "currency", currency: "USD"}, {style: "currency", currency: "EUR"}, {style: "currency", currency: "JPY"}, {style: "currency", currency: "BHD"}, {style: "currency", currency: "CHF"},
  {style: "currency", currency: "USD", currencyDisplay: "code"}, {style: "currency", currency: "VND", currencyDisplay: "name"}, {style: "currency", currency: "USD", currencyDisplay: "name"},
  {style: "currency", currency: "USD", currencyDisplay: "narrowSymbol"}, {style: "currency", currency: "USD", currencySign: "accounting"},
  {style: "currency", currency: "USD", maximumFractionDigits: 0}, {style: "currency", currency: "USD", minimumFractionDigits: 0, maximumFractionDigits: 4}, {style: "currency", currency: "VND", minimumFractionDigits: 2},
  {style: "currency", currency: "EUR", useGrouping: "min2"}, {style: "currency", currency: "USD", signDisplay: "never"}, {style: "currency", currency: "USD", trailingZeroDisplay: "stripIfInteger"},
];
const times = ["2026-11-23T08:05:09.123Z", "1999-12-31T23:59:59.999Z", "2026-07-04T00:00:00.000Z"];
const dateOptions = [];
for (const dateStyle of ["full", "long", "medium", "short"]) {
  dateOptions.push({dateStyle});
  for (const timeStyle of ["medium", "short"]) dateOptions.push({dateStyle, timeStyle});
}
for (const timeStyle of ["medium", "short"]) dateOptions.push({timeStyle});
const Y = {year: "numeric"}, ML = {month: "long"}, M2 = {month: "2-digit"}, D = {day: "numeric"}, D2 = {day: "2-digit"}, WL = {weekday: "long"}, WS = {weekday: "short"};
const HM = {hour: "2-digit", minute: "2-digit"}, HMS = {...HM, second: "2-digit"};
dateOptions.push(
  {...Y, ...ML, ...D}, {...WL, ...Y, ...ML, ...D}, {...ML, ...D}, {...WL, ...ML, ...D}, {...Y, ...M2, ...D2}, {...M2, ...D2}, ML, {month: "short"}, Y, D, D2, WL, WS,
  HM, HMS, {...HMS, fractionalSecondDigits: 3}, {...HM, hourCycle: "h23"}, {...HM, hour12: "true"}, {...Y, ...M2, ...D2, ...HM}, {...M2, ...D2, ...HMS},
);
const zones = ["Asia/Ho_Chi_Minh", "America/New_York"];
const pluralOptions = [{}, {type: "ordinal"}, {minimumFractionDigits: 2}, {maximumFractionDigits: 0}];
const pluralNumbers = ["0", "1", "2", "3", "5", "11", "21", "22", "101", "1.5", "1.0", "1000000", "2000000", "0.5"];
const fluent = v => typeof v === "number" ? String(v) : JSON.stringify(v);
const written = o => Object.entries(o).map(([k, v]) => `${k}: ${fluent(v)}`).join(", ");
const js = o => { const c = {...o};
  if (c.hour12) c.hour12 = c.hour12 === "true"; return c; };
const out = [];
const emit = (...f) => out.push(f.map(x => x.replace(/[\u0000-\u001f\u007f-\u00a0\u200e\u200f\u202f\u061c\u2000-\u200a\u2066-\u2069]/g, c => "\\u{" + c.codePointAt(0).toString(16) + "}")).join("\t"));
for (const l of locales) {
  for (const o of numberOptions) { const f = new Intl.NumberFormat(l, js(o)); for (const n of numbers) emit("number", l, written(o), n, f.format(n)); }
  for (const o of pluralOptions) { const f = new Intl.PluralRules(l, js(o)); for (const n of pluralNumbers) emit("plural", l, written(o), n, f.select(Number(n))); }
  for (const o of dateOptions) for (const z of zones) { const q = {...o, timeZone: z}; const f = new Intl.DateTimeFormat(l, js(q)); for (const t of times) emit("date", l, written(q), t, f.format(new Date(t))); }
}
console.log(out.join("\n"));
