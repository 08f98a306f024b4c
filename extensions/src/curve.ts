/** Points in time to the path of an SVG, with a break where nothing was measured. Pure. */

export interface IPoint {
  readonly us: number;
  readonly value: number | null;
}

export interface ICurve {
  readonly line: string;
  readonly area: string;
}

/** Rows come once a second; more than this between two of them is a gap. */
const GAP_US = 4e6;
/** A curve is never of less than a minute, so that it grows in from the right. */
export const LEAST_US = 60e6;

/** How much time the points cover, in full minutes. */
export function windowUs(points: readonly IPoint[], nowUs: number): number {
  const first = points[0]?.us ?? nowUs;
  return Math.max(LEAST_US, Math.ceil((nowUs - first) / LEAST_US) * LEAST_US);
}

/** The curve in a box of `width` by `height`, `top` being the value at its upper edge. */
export function curve(
  points: readonly IPoint[],
  box: { width: number; height: number },
  span: { nowUs: number; windowUs: number },
  top: number
): ICurve {
  const x = (us: number) => round(box.width * (1 - (span.nowUs - us) / span.windowUs));
  const y = (value: number) =>
    round(box.height * (1 - Math.min(1, Math.max(0, value / (top || 1)))));
  const parts = pieces(points, span.nowUs - span.windowUs);
  const lines = parts.map(part => part.map(point => `${x(point.us)},${y(point.value)}`).join('L'));
  return {
    line: lines.map(line => `M${line}`).join(''),
    area: parts
      .map((part, index) => {
        const from = x(part[0]?.us ?? 0);
        const to = x(part.at(-1)?.us ?? 0);
        return `M${from},${box.height}L${lines[index]}L${to},${box.height}Z`;
      })
      .join('')
  };
}

/** Smallest, largest and newest value, for the sentence that stands for the picture. */
export function summary(
  points: readonly IPoint[]
): { least: number; most: number; last: number } | null {
  const values = points.flatMap(point => (point.value === null ? [] : [point.value]));
  const last = values.at(-1);
  if (last === undefined) {
    return null;
  }
  const least = values.reduce((a, b) => Math.min(a, b));
  return { least, most: values.reduce((a, b) => Math.max(a, b)), last };
}

function pieces(points: readonly IPoint[], fromUs: number): { us: number; value: number }[][] {
  const found: { us: number; value: number }[][] = [];
  let before: number | null = null;
  for (const { us, value } of points) {
    if (value === null || us < fromUs) {
      before = null;
      continue;
    }
    if (before === null || us - before > GAP_US) {
      found.push([]);
    }
    found.at(-1)?.push({ us, value });
    before = us;
  }
  return found;
}

function round(value: number): number {
  return Math.round(value * 10) / 10;
}
