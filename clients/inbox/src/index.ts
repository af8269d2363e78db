// Importing this defines `<signal-inbox>`. The class alone, for a name of your own, is `@signal/inbox/element`.

import { SignalInbox } from "./element.js";

export * from "./element.js";

const { customElements } = globalThis as { customElements?: CustomElementRegistry };
// Two copies may be loaded, and there is no registry where pages are rendered on a server.
if (customElements && !customElements.get("signal-inbox")) customElements.define("signal-inbox", SignalInbox);
