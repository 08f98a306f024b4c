/** The item in the status bar: memory, utilisation, cost, rate. A click opens the panel. */
import { ReactWidget } from '@jupyterlab/apputils';
import type { TranslationBundle } from '@jupyterlab/translation';
import type { Message } from '@lumino/messaging';
import * as React from 'react';

import type { IGpuModel } from './model';
import { SLOW_MS } from './poll';
import { Bar, Simulated, useNow } from './views';
import { type IReading, reading } from './words';

export class StatusItem extends ReactWidget {
  constructor(
    private readonly _model: IGpuModel,
    private readonly _trans: TranslationBundle,
    private readonly _open: () => void
  ) {
    super();
    this.addClass('jp-GpuSlice-statusItem');
  }

  protected override onAfterAttach(message: Message): void {
    super.onAfterAttach(message);
    this._model.want('status', SLOW_MS);
  }

  protected override onBeforeDetach(message: Message): void {
    this._model.want('status', null);
    super.onBeforeDetach(message);
  }

  protected override render(): React.JSX.Element {
    return <Status model={this._model} trans={this._trans} open={this._open} />;
  }
}

const always = () => true;

function Status(props: {
  model: IGpuModel;
  trans: TranslationBundle;
  open: () => void;
}): React.JSX.Element | null {
  const { model, open, trans } = props;
  const now = useNow(model, always);
  if (!model.state.heard && model.state.problem === null) {
    return null; // the first answer is on its way
  }
  const shown = reading(model.state, now, trans);
  const words = sentence(shown, trans);
  return (
    <button
      type="button"
      className="jp-GpuSlice-status"
      aria-label={words}
      title={words}
      onClick={open}
    >
      {shown.simulated && <Simulated trans={trans} />}
      {shown.memory !== null && (
        <>
          <span className="jp-GpuSlice-name">{trans.__('GPU')}</span>
          {shown.memoryShare !== null && <Bar share={shown.memoryShare} />}
          <span>{shown.memory}</span>
        </>
      )}
      {shown.utilisation !== null && <span>{shown.utilisation}</span>}
      {shown.memory === null && shown.utilisation === null && (
        <span>{noNumbers(shown, trans)}</span>
      )}
      {shown.cost !== null && <span>{shown.cost}</span>}
      {shown.rate !== null && <span className="jp-GpuSlice-quiet">{shown.rate}</span>}
      {shown.left !== null && <span>{shown.left}</span>}
      {shown.remarks.length > 0 && shown.memory !== null && <span aria-hidden="true">⚠</span>}
    </button>
  );
}

function noNumbers(shown: IReading, trans: TranslationBundle): string {
  const [remark] = shown.remarks;
  return remark ?? trans.__('GPU: %1', shown.memoryReason ?? '–');
}

/** All of it in words, for the tooltip and for who does not see the bar. */
function sentence(shown: IReading, trans: TranslationBundle): string {
  const memory = shown.memory ?? shown.memoryReason;
  const busy = shown.utilisation ?? shown.utilisationReason;
  const parts = [
    shown.title + (shown.simulated ? ` (${trans.__('simulated')})` : ''),
    memory && trans.__('GPU memory: %1', memory),
    busy && trans.__('Utilisation: %1', busy),
    shown.cost && trans.__('Cost so far: %1', shown.cost),
    shown.rate,
    shown.left,
    shown.ends,
    ...shown.remarks
  ];
  return parts.filter(Boolean).join('\n');
}
