// What a page loads that uses both packages, with all that they have; measured, never run. A path, for names of peers are not measured.
import * as client from "../../client/dist/index.js";
import * as inbox from "../dist/index.js";

globalThis.all = { ...client, ...inbox };
