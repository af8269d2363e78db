// How the inbox looks. Everything that a page may change is a custom property `--signal-*` or a part; the fallbacks are the two themes.

export const css = `
:host {
  --accent: var(--signal-accent, light-dark(#3b5bdb, #8da2fb));
  --on-accent: var(--signal-accent-text, light-dark(#fff, #11142b));
  --badge: var(--signal-badge, light-dark(#d92d3a, #f2555f));
  --on-badge: var(--signal-badge-text, light-dark(#fff, #1c0709));
  --surface: var(--signal-background, light-dark(#fff, #17181c));
  --tint: var(--signal-unread-background, light-dark(#f4f6ff, #1d2030));
  --hover: var(--signal-hover, light-dark(#f3f4f6, #23252b));
  --line: var(--signal-border, light-dark(#e5e7eb, #2c2f36));
  --ink: var(--signal-text, light-dark(#16181d, #f0f1f4));
  --soft: var(--signal-text-muted, light-dark(#5b616e, #a2a8b4));
  --danger: var(--signal-danger, light-dark(#b42318, #ff8a80));
  --radius: var(--signal-radius, 14px);
  --ring: 0 0 0 2px var(--surface), 0 0 0 4px var(--accent);
  display: inline-block;
  color-scheme: light dark;
  font: 400 14px/20px var(--signal-font, system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Helvetica Neue", Arial, sans-serif);
  color: var(--ink);
  text-align: start;
  -webkit-text-size-adjust: 100%;
}
:host([theme="light"]) { color-scheme: only light; }
:host([theme="dark"]) { color-scheme: only dark; }
:host([theme="page"]) { color-scheme: inherit; }
:host([mode="inline"]) { display: block; }
:host([hidden]), [hidden] { display: none !important; }
*, *::before { box-sizing: border-box; }
button, a { font: inherit; color: inherit; background: none; border: 0; margin: 0; padding: 0; text-align: inherit; text-decoration: none; cursor: pointer; -webkit-tap-highlight-color: transparent; }
button:disabled { cursor: default; opacity: .45; }
:focus { outline: none; }
:focus-visible { outline: 2px solid transparent; box-shadow: var(--ring); }
svg { display: block; inline-size: 1em; block-size: 1em; fill: none; stroke: currentColor; stroke-width: 1.7; stroke-linecap: round; stroke-linejoin: round; }
.hidden { position: absolute; inline-size: 1px; block-size: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }

.bell { position: relative; display: grid; place-items: center; inline-size: var(--signal-bell-size, 40px); block-size: var(--signal-bell-size, 40px); border-radius: 999px; color: var(--signal-bell-color, var(--ink)); font-size: calc(var(--signal-bell-size, 40px) * .56); }
.bell:hover, .bell[aria-expanded="true"] { background: var(--hover); }
.badge { position: absolute; inset-block-start: 2px; inset-inline-start: 54%; min-inline-size: 18px; padding-inline: 5px; border-radius: 9px; background: var(--badge); color: var(--on-badge); font: 600 11px/18px var(--signal-font, system-ui, sans-serif); text-align: center; font-variant-numeric: tabular-nums; box-shadow: 0 0 0 2px var(--surface); pointer-events: none; }

.panel { display: flex; flex-direction: column; inline-size: 100%; block-size: 100%; margin: 0; padding: 0; border: 1px solid var(--line); border-radius: var(--radius); background: var(--surface); color: var(--ink); overflow: hidden; }
:host(:not([mode="inline"])) .panel { position: fixed; inset: auto; z-index: 2147483000; inline-size: min(var(--signal-panel-width, 400px), 100vw - 16px); block-size: var(--signal-panel-height, 560px); box-shadow: var(--signal-shadow, 0 1px 2px rgb(0 0 0 / .06), 0 12px 40px -8px rgb(0 0 0 / .22)); }
:host([mode="inline"]) .panel { block-size: var(--signal-panel-height, 560px); }
.panel:not([data-open]) { display: none; }

.header { display: flex; align-items: center; gap: 4px; padding-block: 14px 8px; padding-inline: 18px 12px; }
.title { flex: 1; min-inline-size: 0; margin: 0; font-size: 17px; font-weight: 650; line-height: 24px; letter-spacing: -.01em; }
.tool { display: grid; place-items: center; inline-size: 32px; block-size: 32px; border-radius: 8px; color: var(--soft); font-size: 18px; }
.tool:hover:not(:disabled) { background: var(--hover); color: var(--ink); }

.tabs { display: flex; gap: 4px; padding-inline: 14px; border-block-end: 1px solid var(--line); }
.tab { position: relative; display: flex; align-items: center; gap: 6px; padding: 7px 6px 10px; border-radius: 6px 6px 0 0; color: var(--soft); font-weight: 550; }
.tab:hover { color: var(--ink); }
.tab[aria-selected="true"] { color: var(--ink); }
.tab[aria-selected="true"]::before { content: ""; position: absolute; inset-inline: 4px; inset-block-end: -1px; block-size: 2px; border-radius: 2px; background: var(--accent); }
.tab-count { min-inline-size: 20px; padding-inline: 6px; border-radius: 10px; background: var(--hover); color: var(--soft); font-size: 12px; line-height: 18px; text-align: center; font-variant-numeric: tabular-nums; }
.tab[aria-selected="true"] .tab-count { background: var(--accent); color: var(--on-accent); }

.banner { display: flex; align-items: center; gap: 8px; padding: 8px 18px; border-block-end: 1px solid var(--line); background: var(--hover); color: var(--soft); font-size: 13px; line-height: 18px; }
.banner span { flex: 1; }
.action { padding: 2px 8px; border-radius: 6px; color: var(--accent); font-weight: 600; }
.action:hover { background: var(--tint); }

.body { position: relative; flex: 1; min-block-size: 0; display: flex; flex-direction: column; }
.scroller { flex: 1; min-block-size: 0; overflow-y: auto; overflow-anchor: none; overscroll-behavior: contain; scrollbar-width: thin; scrollbar-color: var(--line) transparent; }
.scroller:focus-visible { box-shadow: inset 0 0 0 2px var(--accent); }
.list { position: relative; contain: layout style; }
.item { position: absolute; min-block-size: 40px; inset-inline: 0; inset-block-start: 0; border-block-end: 1px solid var(--line); background: var(--surface); }
.item.unread { background: var(--tint); }
.item:hover { background: var(--hover); }
.link { position: relative; display: flex; inline-size: 100%; padding-block: 13px 14px; padding-inline: 30px 18px; }
.link:focus-visible { box-shadow: inset 0 0 0 2px var(--accent); border-radius: 6px; }
.link.cover { position: absolute; inset: 0; }
.custom { position: relative; pointer-events: none; }
.custom ::slotted(*) { pointer-events: auto; }
.dot { position: absolute; inset-inline-start: 13px; inset-block-start: 19px; inline-size: 8px; block-size: 8px; border-radius: 50%; background: var(--accent); opacity: 0; }
.unread .dot { opacity: 1; }
.text { display: block; flex: 1; min-inline-size: 0; }
.line { display: flex; align-items: baseline; gap: 12px; }
.item-title { flex: 1; min-inline-size: 0; text-align: -webkit-match-parent; text-align: match-parent; font-weight: 500; overflow-wrap: anywhere; }
.unread .item-title { font-weight: 650; }
.item-content { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3; overflow: hidden; margin-block-start: 2px; text-align: -webkit-match-parent; text-align: match-parent; color: var(--soft); font-size: 13px; line-height: 19px; overflow-wrap: anywhere; white-space: pre-line; }
.item-time { flex: none; color: var(--soft); font-size: 12px; line-height: 20px; font-variant-numeric: tabular-nums; white-space: nowrap; }
.tools { position: absolute; inset-block-start: 7px; inset-inline-end: 10px; display: flex; gap: 2px; padding: 1px; border-radius: 9px; background: var(--surface); box-shadow: 0 0 0 1px var(--line); opacity: 0; pointer-events: none; }
.item:hover .tools, .item:focus-within .tools { opacity: 1; pointer-events: auto; }
.item:hover .item-time, .item:focus-within .item-time { opacity: 0; }
.tools .tool { inline-size: 30px; block-size: 28px; font-size: 16px; border-radius: 7px; }

.state { display: grid; flex: 1; place-content: center; justify-items: center; gap: 4px; padding: 32px; text-align: center; color: var(--soft); }
.state svg { font-size: 28px; }
.state-icon { display: grid; place-items: center; inline-size: 64px; block-size: 64px; margin-block-end: 12px; border-radius: 50%; background: var(--tint); color: var(--accent); }
.state-title { color: var(--ink); font-size: 15px; font-weight: 600; }
.ghost { padding-block: 16px 17px; padding-inline: 30px 18px; border-block-end: 1px solid var(--line); }
.ghost::before, .ghost::after { content: ""; display: block; block-size: 10px; border-radius: 5px; background: var(--hover); }
.ghost::before { inline-size: 46%; margin-block-end: 12px; }
.ghost::after { inline-size: 82%; }
.foot { display: flex; justify-content: center; align-items: center; gap: 8px; min-block-size: 12px; padding: 10px; color: var(--soft); font-size: 13px; }
.more { position: absolute; z-index: 1; inset-block-start: 10px; inset-inline: 0; margin-inline: auto; inline-size: fit-content; display: flex; align-items: center; gap: 6px; padding-block: 6px; padding-inline: 10px 14px; border-radius: 999px; background: var(--accent); color: var(--on-accent); font-size: 13px; font-weight: 600; line-height: 18px; box-shadow: 0 4px 14px rgb(0 0 0 / .2); }
.toast { position: absolute; z-index: 1; inset-inline: 12px; inset-block-end: 12px; padding: 10px 14px; border-radius: 10px; border: 1px solid var(--line); background: var(--surface); color: var(--danger); font-size: 13px; line-height: 18px; box-shadow: 0 6px 20px rgb(0 0 0 / .16); }

@media (prefers-reduced-motion: no-preference) {
  .bell, .tool, .tab, .item, .tools, .action, .item-time { transition: background-color .12s, color .12s, opacity .12s; }
  .panel[data-open] { animation: open .14s ease-out; }
  :host([mode="inline"]) .panel { animation: none; }
  .ghost { animation: pulse 1.4s ease-in-out infinite alternate; }
  @keyframes open { from { opacity: 0; transform: translateY(-6px); } }
  @keyframes pulse { to { opacity: .5; } }
}
@media (hover: none) {
  .item { display: flex; }
  .link { flex: 1; min-inline-size: 0; padding-inline-end: 6px; }
  .custom { flex: 1; min-inline-size: 0; }
  .tools { position: relative; inset: auto; flex: none; flex-direction: column; padding-block: 8px; padding-inline: 0 6px; background: none; box-shadow: none; opacity: 1; pointer-events: auto; }
  .tools .tool { inline-size: 40px; block-size: 32px; }
  .item .item-time.item-time { opacity: 1; }
}
@media (forced-colors: active) {
  :focus-visible { outline: 2px solid Highlight; outline-offset: -2px; }
  .badge, .dot, .more { forced-color-adjust: none; background: Highlight; color: HighlightText; }
  .tab[aria-selected="true"]::before { forced-color-adjust: none; background: Highlight; }
  .bell, .tools, .toast { border: 1px solid ButtonText; }
}
`;
