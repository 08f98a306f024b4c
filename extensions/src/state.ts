/** What a tab knows, and how an answer or a failure changes it. Pure: no network, no DOM. */

/** One second of the slice. Times are microseconds of the server's clock. */
export interface IRow {
  readonly sequence: number;
  readonly takenUs: number;
  readonly memory: number | null;
  readonly utilisation: number | null;
  readonly costU: number | null;
}

export interface IDevice {
  readonly kind: 'whole' | 'mig' | 'shared' | 'unknown' | 'none';
  readonly label: string;
  readonly model: string | null;
  readonly memory_total: number | null;
  readonly simulated: boolean;
  readonly problem: string | null;
  readonly memory_reason: string | null;
  readonly utilisation_reason: string | null;
}

export interface IBill {
  readonly title: string;
  readonly state: string;
  readonly rate_u_per_hour: number;
  readonly cost_u: number;
  readonly as_of_us: number;
  readonly heard_us: number;
  readonly currency: string;
  readonly simulated: boolean;
  readonly ticking: boolean;
  readonly stop_requested_us: number | null;
  readonly stop_reason: string | null;
  /** When a limit stops it, as things are, and which. */
  readonly deadline_us: number | null;
  readonly deadline_reason: string | null;
}

/** What `GET sample` answers. A row is [sequence, taken, memory, utilisation, cost]. */
export interface IAnswer {
  readonly boot: string;
  readonly now_us: number;
  readonly rows: readonly (readonly (number | null)[])[];
  readonly device?: IDevice;
  readonly bill: IBill | null;
  readonly bill_problem: string | null;
  readonly behind_hub: boolean;
}

export interface IState {
  /** Names the server's process: after a restart its sequences start anew. */
  readonly boot: string;
  readonly sequence: number;
  readonly rows: readonly IRow[];
  readonly device: IDevice | null;
  readonly bill: IBill | null;
  readonly billProblem: string | null;
  readonly behindHub: boolean;
  /** Add to the browser's clock (microseconds) to get the server's. */
  readonly offsetUs: number;
  /** One sentence when the notebook server itself does not answer. */
  readonly problem: string | null;
  /** Whether there was an answer at all. */
  readonly heard: boolean;
}

/** The cost now. `asOfUs` is set when it is not a number of this moment. */
export interface ICost {
  readonly micro: number;
  readonly asOfUs: number | null;
}

/** As many rows as the server keeps: a quarter of an hour. */
export const KEEP = 900;
/** A reading older than this is not shown as the present. */
export const PRESENT_US = 15e6;
/** After this long without an answer the cost is not counted on. */
const FRESH_US = 90e6;
const HOUR_US = 3600e6;

export const EMPTY: IState = {
  boot: '',
  sequence: 0,
  rows: [],
  device: null,
  bill: null,
  billProblem: null,
  behindHub: false,
  offsetUs: 0,
  problem: null,
  heard: false
};

export function isAnswer(value: unknown): value is IAnswer {
  if (typeof value !== 'object' || value === null) {
    return false;
  }
  const answer = value as Partial<Record<keyof IAnswer, unknown>>;
  return (
    typeof answer.boot === 'string' &&
    typeof answer.now_us === 'number' &&
    Array.isArray(answer.rows) &&
    typeof answer.bill === 'object'
  );
}

/** The state after an answer that arrived at `browserUs`. */
export function merged(state: IState, answer: IAnswer, browserUs: number): IState {
  const same = answer.boot === state.boot;
  const old = same ? state.rows : [];
  const last = same ? state.sequence : 0;
  const fresh = answer.rows.map(asRow).filter(row => row.sequence > last);
  return {
    boot: answer.boot,
    sequence: fresh.at(-1)?.sequence ?? last,
    rows: [...old, ...fresh].slice(-KEEP),
    device: answer.device ?? state.device,
    bill: answer.bill,
    billProblem: answer.bill_problem,
    behindHub: answer.behind_hub,
    offsetUs: answer.now_us - browserUs,
    problem: null,
    heard: true
  };
}

/** The state after a request that failed: everything known stays, and says since when. */
export function failed(state: IState, problem: string): IState {
  return { ...state, problem };
}

/** The newest row, unless it is of the past. */
export function present(state: IState, browserUs: number): IRow | null {
  const row = state.rows.at(-1);
  const now = browserUs + state.offsetUs;
  return row !== undefined && now - row.takenUs <= PRESENT_US ? row : null;
}

/** When the numbers were read that are known; null while they are of now. */
export function lastSeenUs(state: IState, browserUs: number): number | null {
  const row = state.rows.at(-1);
  return row === undefined || present(state, browserUs) ? null : row.takenUs;
}

/** The cost between two answers: what was billed plus the rate since then. */
export function costNow(state: IState, browserUs: number): ICost | null {
  const { bill } = state;
  if (bill === null) {
    return null;
  }
  const now = browserUs + state.offsetUs;
  const running = bill.state === 'running' || bill.state === 'stopping';
  const fresh = now - bill.heard_us <= FRESH_US;
  if (bill.ticking && fresh) {
    return { micro: accrued(bill, now), asOfUs: null };
  }
  if (running && bill.stop_requested_us !== null) {
    return { micro: accrued(bill, bill.stop_requested_us), asOfUs: null };
  }
  return { micro: bill.cost_u, asOfUs: running ? bill.as_of_us : null };
}

/** Microseconds until a limit stops the server; null when none does, or it is being stopped. */
export function leftUs(state: IState, browserUs: number): number | null {
  const { bill } = state;
  if (
    bill === null ||
    bill.deadline_us === null ||
    bill.state !== 'running' ||
    bill.stop_requested_us !== null
  ) {
    return null;
  }
  return Math.max(0, bill.deadline_us - (browserUs + state.offsetUs));
}

function accrued(bill: IBill, untilUs: number): number {
  const since = Math.max(0, untilUs - bill.as_of_us);
  return bill.cost_u + Math.floor((bill.rate_u_per_hour * since) / HOUR_US);
}

function asRow(values: readonly (number | null)[]): IRow {
  const [sequence, takenUs, memory, utilisation, costU] = values;
  return {
    sequence: sequence ?? 0,
    takenUs: takenUs ?? 0,
    memory: memory ?? null,
    utilisation: utilisation ?? null,
    costU: costU ?? null
  };
}
