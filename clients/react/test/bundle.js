// What an application loads that uses all of it, without React; measured, never run. Paths, for names of peers are not measured.
import * as client from "../../client/dist/index.js";
import * as react from "../dist/index.js";

globalThis.all = { ...client, ...react };
