/** The six plugins; each can be disabled, and none waits for the network to start. */
import {
  ILabShell,
  ILayoutRestorer,
  type JupyterFrontEnd,
  type JupyterFrontEndPlugin
} from '@jupyterlab/application';
import { ICommandPalette } from '@jupyterlab/apputils';
import { ILauncher } from '@jupyterlab/launcher';
import { IStatusBar } from '@jupyterlab/statusbar';
import { ITranslator, nullTranslator } from '@jupyterlab/translation';

import { HomeModel, IHomeModel } from './homeModel';
import { gpuIcon } from './icon';
import { StarterCards } from './launcher';
import { GpuModel, IGpuModel } from './model';
import { Notifier } from './notify';
import { GpuPanel } from './panel';
import { StatusItem } from './statusItem';

const DOMAIN = 'jupyterlab-gpuslice';
const OPEN = 'gpuslice:open-panel';

function bundle(translator: ITranslator | null) {
  return (translator ?? nullTranslator).load(DOMAIN);
}

const model: JupyterFrontEndPlugin<IGpuModel> = {
  id: 'jupyterlab-gpuslice:model',
  description: 'Asks the notebook server what the own GPU slice does.',
  autoStart: true,
  optional: [ITranslator],
  provides: IGpuModel,
  activate: (app: JupyterFrontEnd, translator: ITranslator | null) => {
    const trans = bundle(translator);
    return new GpuModel(app.serviceManager.serverSettings, {
      away: trans.__('The notebook server does not answer.'),
      notLoaded: trans.__('The server side of jupyterlab-gpuslice is not loaded.')
    });
  }
};

const status: JupyterFrontEndPlugin<void> = {
  id: 'jupyterlab-gpuslice:status',
  description: 'Shows memory, utilisation and cost in the status bar.',
  autoStart: true,
  requires: [IGpuModel],
  optional: [IStatusBar, ITranslator],
  activate: (
    app: JupyterFrontEnd,
    gpu: IGpuModel,
    bar: IStatusBar | null,
    translator: ITranslator | null
  ) => {
    const open = () => {
      if (app.commands.hasCommand(OPEN)) {
        void app.commands.execute(OPEN);
      }
    };
    bar?.registerStatusItem(status.id, {
      item: new StatusItem(gpu, bundle(translator), open),
      align: 'left',
      rank: 600,
      priority: 1
    });
  }
};

const home: JupyterFrontEndPlugin<IHomeModel> = {
  id: 'jupyterlab-gpuslice:home',
  description: 'Asks how full the home is, and says when it is nearly full.',
  autoStart: true,
  optional: [ILabShell, ITranslator],
  provides: IHomeModel,
  activate: (app: JupyterFrontEnd, labShell: ILabShell | null, translator: ITranslator | null) => {
    const open = () => {
      if (app.commands.hasCommand(OPEN)) {
        void app.commands.execute(OPEN);
      }
    };
    const { serverSettings } = app.serviceManager;
    return new HomeModel(serverSettings, bundle(translator), labShell && open);
  }
};

const panel: JupyterFrontEndPlugin<void> = {
  id: 'jupyterlab-gpuslice:panel',
  description: 'Shows memory, utilisation and cost as curves at the right, and the home.',
  autoStart: true,
  requires: [IGpuModel],
  optional: [IHomeModel, ILabShell, ILayoutRestorer, ICommandPalette, ITranslator],
  activate: (
    app: JupyterFrontEnd,
    gpu: IGpuModel,
    homeModel: IHomeModel | null,
    labShell: ILabShell | null,
    restorer: ILayoutRestorer | null,
    palette: ICommandPalette | null,
    translator: ITranslator | null
  ) => {
    const trans = bundle(translator);
    const widget = new GpuPanel(gpu, homeModel, trans);
    app.shell.add(widget, 'right', { rank: 600, type: 'GPU slice' });
    if (labShell) {
      restorer?.add(widget, 'gpuslice-panel');
    }
    app.commands.addCommand(OPEN, {
      label: trans.__('Show GPU Slice'),
      caption: trans.__('Memory, utilisation and cost of your GPU slice'),
      icon: gpuIcon,
      execute: () => {
        app.shell.activateById(widget.id);
      },
      describedBy: { args: { type: 'object', properties: {} } }
    });
    palette?.addItem({ command: OPEN, category: trans.__('GPU') });
  }
};

const notify: JupyterFrontEndPlugin<void> = {
  id: 'jupyterlab-gpuslice:notify',
  description: 'Shows notices of the gpuslice service as notifications.',
  autoStart: true,
  optional: [ITranslator],
  activate: (app: JupyterFrontEnd, translator: ITranslator | null) => {
    new Notifier(app.serviceManager.serverSettings, bundle(translator));
  }
};

const starters: JupyterFrontEndPlugin<void> = {
  id: 'jupyterlab-gpuslice:starters',
  description: 'Opens copies of the starter notebooks from the launcher.',
  autoStart: true,
  optional: [ILauncher, ICommandPalette, ITranslator],
  activate: (
    app: JupyterFrontEnd,
    launcher: ILauncher | null,
    palette: ICommandPalette | null,
    translator: ITranslator | null
  ) => {
    void new StarterCards(app, bundle(translator)).show(launcher, palette);
  }
};

export default [model, status, home, panel, notify, starters];
