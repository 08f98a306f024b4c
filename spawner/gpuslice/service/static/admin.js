// The administrator's pages: their live parts are made anew by the server every few seconds.
import { refreshPage, whileVisible } from "./live.js";

whileVisible(5_000, () => refreshPage());
