/** Small pieces that status item and panel share. */
import type { TranslationBundle } from '@jupyterlab/translation';
import * as React from 'react';

import { browserUs, type IGpuModel } from './model';
import { NEARLY_FULL } from './words';

const TICK_MS = 1000;

/** Draws again when there is news, and each second so that the cost moves without traffic. */
export function useNow(model: IGpuModel, seen: () => boolean): number {
  const [now, setNow] = React.useState(browserUs);
  React.useEffect(() => {
    const draw = () => {
      if (!document.hidden && seen()) {
        setNow(browserUs());
      }
    };
    model.changed.connect(draw);
    document.addEventListener('visibilitychange', draw);
    const timer = window.setInterval(draw, TICK_MS);
    return () => {
      model.changed.disconnect(draw);
      document.removeEventListener('visibilitychange', draw);
      window.clearInterval(timer);
    };
  }, [model, seen]);
  return now;
}

/** A bar. Inside a button it is decoration: the button says it all in words. */
export function Bar(props: {
  share: number | null;
  label?: string;
  text?: string;
}): React.JSX.Element {
  const { label, share, text } = props;
  const percent = share === null ? 0 : Math.min(100, Math.max(0, share * 100));
  const aria =
    label === undefined || share === null
      ? { 'aria-hidden': true }
      : {
          role: 'meter',
          'aria-label': label,
          'aria-valuemin': 0,
          'aria-valuemax': 100,
          'aria-valuenow': Math.round(percent),
          'aria-valuetext': text
        };
  return (
    <span className="jp-GpuSlice-bar" data-full={share !== null && share >= NEARLY_FULL} {...aria}>
      <span style={{ width: `${percent}%` }} />
    </span>
  );
}

export function Simulated(props: { trans: TranslationBundle }): React.JSX.Element {
  return <span className="jp-GpuSlice-simulated">{props.trans.__('Simulated')}</span>;
}
