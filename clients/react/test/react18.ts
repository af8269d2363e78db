// The oldest React that the package takes, in place of the newest.

import { fileURLToPath } from "node:url";

const at = (name: string): string => fileURLToPath(new URL(`../../react18/node_modules/${name}`, import.meta.url));

export const react18 = ["react-dom", "react"].map((name) => ({ find: new RegExp(`^${name}(?=/|$)`), replacement: at(name) }));
