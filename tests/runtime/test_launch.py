"""The files of launch/, run as far as they go without a cluster: stand-ins for its commands record their calls."""

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from cfg.runtime.parallel import share
from cfg.settings.checks import check_config
from tests.command_line import ROOT

LAUNCH = ROOT / 'launch'
TPU, TRAIN, SWEEP = (LAUNCH / name for name in ('tpu_queued_resource.sh', 'slurm_train.sbatch', 'slurm_sweep.sbatch'))
SCRIPTS = (TPU, TRAIN, SWEEP)
JOBSET = LAUNCH / 'jobset.yaml'
AGAIN = (1, 75, 130, 137, 143)  # exit statuses after which the same command goes on
RECORD = 'printf "%s\\037" "${0##*/}" "$@" >>"$CALLS"; printf "\\036" >>"$CALLS"\n'


class Stage:
    """A folder of stand-ins that come first in PATH, and what they were called with."""

    def __init__(self, folder):
        self.folder = folder
        (folder / 'bin').mkdir()

    def stand_in(self, name, body='', folder=None):
        path = (folder or self.folder / 'bin') / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'#!/bin/bash\n{RECORD}{body}\n')
        path.chmod(0o755)
        return path

    def environment(self, **extra):
        """Nothing of ours but what a shell needs."""
        path = f'{self.folder / "bin"}{os.pathsep}{os.environ["PATH"]}'
        return {'PATH': path, 'HOME': str(self.folder), 'CALLS': str(self.folder / 'calls'), **extra}

    def run(self, *command, **extra):
        return subprocess.run(
            command, cwd=ROOT, env=self.environment(**extra), capture_output=True, text=True, timeout=300
        )

    def calls(self, *beginning):
        """Those that begin with these words, each as its list of words."""
        path = self.folder / 'calls'
        records = path.read_text().split('\036')[:-1] if path.exists() else []
        calls = [record.split('\037')[:-1] for record in records]
        return [call for call in calls if call[: len(beginning)] == list(beginning)]


@pytest.fixture
def stage(tmp_path):
    return Stage(tmp_path)


def known_modes_and_flags():
    """Read off main.py and what defines flags for it."""
    modes, flags = (), {'config'}
    files = [(ROOT / name).read_text() for name in ('cfg/__main__.py', 'cfg/runtime/command_line.py')]
    for node in (node for file in files for node in ast.walk(ast.parse(file))):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == 'MODES':
            modes = tuple(ast.literal_eval(key) for key in node.value.keys)
        elif isinstance(node, ast.Call) and getattr(node.func, 'attr', '').startswith(
            ('DEFINE_str', 'DEFINE_int', 'DEFINE_enum', 'define_path')
        ):
            flags.add(node.args[0].value)
    return modes, flags


def check_arguments(arguments, *, devices):
    """Every flag exists, every field takes its value, and the batches divide over the devices."""
    modes, known = known_modes_and_flags()
    config, fields = None, []
    for argument in arguments:
        name, equals, value = argument.partition('=')
        assert equals, argument
        assert name.startswith('--'), argument
        if name.startswith('--config.'):
            fields.append((name.removeprefix('--config.'), value))
            continue
        assert name[2:] in known, argument
        if name == '--mode':
            assert value in modes
        if name == '--config':
            assert (ROOT / value).is_file(), value
            config = import_module(value.removesuffix('.py').replace('/', '.')).get_config()
    for name, value in fields:
        *folders, field = name.split('.')
        place = config
        for folder in folders:
            place = place[folder]
        assert field in place, name
        place[field] = value if isinstance(place[field], str) else ast.literal_eval(value)
    check_config(config)
    assert share(config.train.batch_size, devices, 'train.batch_size') % config.train.grad_accum == 0
    share(config.sampling.batch_size, devices, 'sampling.batch_size')
    return config


# --- All shell scripts. -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    subprocess.run(['bash', '-n', script], check=True)
    shellcheck = Path(sys.executable).parent / 'shellcheck'
    done = subprocess.run([shellcheck, '--shell=bash', script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# --- Slurm. -----------------------------------------------------------------------------------------------------------

# Skips srun's own flags and runs the rest, as one task.
SRUN = """
while [[ "$1" == -* ]]; do shift; done
"$@"
code=$?
[[ -z "${SRUN_SAYS:-}" ]] || echo "$SRUN_SAYS" >&2
exit "${SRUN_STATUS:-$code}"
"""


def slurm(stage, script, *, status, state='RUNNING', scontrol=0, **extra):
    stage.stand_in('srun', SRUN)
    stage.stand_in('squeue', f'echo {state}' if state else 'exit 1')
    stage.stand_in('scontrol', f'exit {scontrol}')
    python = stage.stand_in('its_python', f'exit {status}')
    slurm_sets = {
        'SLURM_SUBMIT_DIR': str(ROOT),
        'SLURM_JOB_ID': '77',
        'SLURM_NTASKS': '16',
        'SLURM_CPUS_PER_TASK': '8',
        'SLURM_ARRAY_TASK_ID': '3',
        'SLURM_ARRAY_TASK_COUNT': '14',
        'SLURM_ARRAY_TASK_MIN': '1',
        'SLURM_ARRAY_TASK_MAX': '14',
    }
    # Slurm runs a copy, from elsewhere.
    copy = stage.folder / 'slurm_script'
    shutil.copy(script, copy)
    return stage.run('bash', str(copy), **{**slurm_sets, 'PYTHON': str(python), **extra})


def directives(script):
    """{option: value} of the lines that Slurm reads: those before the first command."""
    head = re.split(r'^[^#\s]', script.read_text(), maxsplit=1, flags=re.MULTILINE)[0]
    options = re.findall(r'^#SBATCH --([a-z-]+)(?:=(\S+))?$', head, re.MULTILINE)
    assert len(options) == script.read_text().count('#SBATCH')
    return dict(options)


def test_slurm_trains_with_one_process_a_gpu(stage):
    done = slurm(stage, TRAIN, status=0)
    assert done.returncode == 0, done.stderr
    (srun,) = stage.calls('srun')
    assert '--gpu-bind=none' in srun
    (python,) = stage.calls('its_python')
    assert python[1] == 'main.py'
    asked = directives(TRAIN)
    devices = int(asked['nodes']) * int(asked['ntasks-per-node'])
    assert asked['ntasks-per-node'] == asked['gpus-per-node']
    config = check_arguments(python[2:], devices=devices)
    assert config.data.dir == '/data'
    assert {'--mode=train', '--workdir=runs/imagenet64', '--config=configs/imagenet64.py'} <= set(python)
    assert not stage.calls('scontrol')


def test_slurm_warns_the_processes_and_may_requeue():
    for script in (TRAIN, SWEEP):
        asked = directives(script)
        assert re.fullmatch(r'TERM@\d+', asked['signal'])  # without B: the processes, not the script
        assert 'requeue' in asked
        assert asked['open-mode'] == 'append'


def test_parameters_of_slurm_come_from_the_environment(stage):
    flags = '--config.train.grad_accum=4  --config.train.remat=True'
    slurm(stage, TRAIN, status=0, FLAGS=flags, CONFIG='configs/imagenet128.py', WORKDIR='/runs/a', DATA_DIR='/d d')
    (python,) = stage.calls('its_python')
    assert python[2:] == [
        '--config=configs/imagenet128.py',
        '--config.data.dir=/d d',
        '--workdir=/runs/a',
        '--mode=train',
        '--config.train.grad_accum=4',
        '--config.train.remat=True',
    ]


@pytest.mark.parametrize('script', [TRAIN, SWEEP], ids=lambda path: path.name)
class TestSlurmStartsAgain:
    @pytest.mark.parametrize('status', AGAIN)
    def test_after_this_status(self, stage, script, status):
        done = slurm(stage, script, status=status)
        assert stage.calls('scontrol') == [['scontrol', 'requeue', '77']], done.stderr
        assert f'exit status {status}: into the queue again' in done.stdout

    def test_not_after_a_mistake(self, stage, script):
        done = slurm(stage, script, status=2)
        assert done.returncode == 2
        assert not stage.calls('scontrol')

    @pytest.mark.parametrize('state', ['CANCELLED', 'COMPLETING', 'PREEMPTED'])
    def test_not_after_scancel(self, stage, script, state):
        done = slurm(stage, script, status=143, state=state)
        assert done.returncode == 143
        assert not stage.calls('scontrol')

    def test_where_slurm_does_not_answer(self, stage, script):
        slurm(stage, script, status=143, state='')
        assert len(stage.calls('scontrol')) == 1

    def test_not_for_ever(self, stage, script):
        assert slurm(stage, script, status=1, SLURM_RESTART_COUNT='100').returncode == 1
        assert not stage.calls('scontrol')
        slurm(stage, script, status=1, SLURM_RESTART_COUNT='99')
        assert len(stage.calls('scontrol')) == 1

    def test_unless_it_is_refused(self, stage, script):
        done = slurm(stage, script, status=75, scontrol=1)
        assert done.returncode == 75
        assert 'submit the same command again' in done.stdout


@pytest.mark.parametrize(
    ('says', 'again'),
    [
        ('srun: error: node4: task 3: Exited with exit code 2', False),
        ('srun: error: node[4-5]: tasks 0-2,4-15: Exited with exit code 2', False),
        ('srun: error: node4: tasks 0-2: Exited with exit code 75', True),
        ('srun: error: node4: task 3: Exited with exit code 25', True),
        ('error: a library says: Exited with exit code 2', True),
    ],
)
def test_a_mistake_in_one_process_hides_behind_the_others(stage, says, again):
    """srun returns the highest status: 75 of those that lost the one that ended with 2."""
    done = slurm(stage, TRAIN, status=0, SRUN_STATUS='75', SRUN_SAYS=says)
    assert says in done.stderr
    assert bool(stage.calls('scontrol')) == again
    if not again:
        assert done.returncode == 2


def test_the_sweep_is_an_array_of_single_processes(stage):
    done = slurm(stage, SWEEP, status=0)
    assert done.returncode == 0, done.stderr
    (python,) = stage.calls('its_python')
    asked = directives(SWEEP)
    config = check_arguments(python[2:], devices=int(asked['gpus-per-node']))
    assert config.eval.job == '3/14'
    assert {'--mode=eval', '--num_processes=1'} <= set(python)
    share(config.eval.batch_size, int(asked['gpus-per-node']), 'eval.batch_size')
    assert asked['array'] == f'1-{len(config.eval.w)}'  # a job for each row of the paper's table


def test_some_jobs_of_a_sweep_alone(stage):
    some = {'SLURM_ARRAY_TASK_COUNT': '2', 'SLURM_ARRAY_TASK_MIN': '3', 'SLURM_ARRAY_TASK_MAX': '7'}
    done = slurm(stage, SWEEP, status=0, **some)
    assert done.returncode == 2
    assert 'JOBS must say' in done.stderr
    assert not stage.calls('srun')
    slurm(stage, SWEEP, status=0, JOBS='14', **some)
    assert '--config.eval.job=3/14' in stage.calls('its_python')[0]


# --- Cloud TPU: what runs on the user's computer. ---------------------------------------------------------------------

# The state of the queued resource is the first line of `states`, and the last line stays. What ssh returns for the
# training is a line of `outcomes`: the exit status of gcloud, and those of the workers; 'gone' loses the slice.
GCLOUD = """
cd "$STAGE"
case "$3 $4" in
  'queued-resources describe')
    now="$(head -n 1 states)"
    [[ "$(wc -l <states)" == 1 ]] || sed -i 1d states
    case "$now" in
      ABSENT) echo 'ERROR: (gcloud) NOT_FOUND: Resource was not found' >&2; exit 1 ;;
      BROKEN) echo 'ERROR: gcloud crashed (ConnectionError)' >&2; exit 1 ;;
    esac
    echo "$now"
    ;;
  'queued-resources create') printf '%s\\n' WAITING_FOR_RESOURCES PROVISIONING ACTIVE >states ;;
  'queued-resources delete') echo ABSENT >states ;;
  'tpu-vm ssh')
    for word in "$@"; do
      case "$word" in --command=*remote_run\\ --*)
        read -r status codes <outcomes
        sed -i 1d outcomes
        [[ "$codes" == gone ]] && echo SUSPENDED >states && exit "$status"
        for code in $codes; do echo "launch: t1v-n-$code-w ended with exit status $code"; done
        exit "$status"
      esac
    done
    ;;
esac
"""


def tpu(stage, *arguments, outcomes=(), states=('ABSENT',), **extra):
    stage.stand_in('gcloud', GCLOUD)
    (stage.folder / 'states').write_text(''.join(f'{line}\n' for line in states))
    (stage.folder / 'outcomes').write_text(''.join(f'{line}\n' for line in outcomes))
    return stage.run('bash', str(TPU), *arguments, STAGE=str(stage.folder), POLL='0', **extra)


def deeds(stage):
    """What gcloud was asked to do, in order, without the questions."""
    names = []
    for call in stage.calls('gcloud', 'compute', 'tpus'):
        command = next((word for word in call if word.startswith('--command=')), '')
        last = command.rstrip().splitlines()[-1] if command else ''
        names.append(re.sub(r'^.*(remote_[a-z]+).*$', r'\1', last) if last else call[4])
    return [name for name in names if name != 'describe']


ONCE = ['scp', 'remote_setup', 'remote_run']


def test_a_tpu_run_from_nothing_to_the_end(stage):
    done = tpu(stage, outcomes=['0 0 0'])
    assert done.returncode == 0, done.stderr
    assert deeds(stage) == ['create', *ONCE, 'delete']
    (create,) = stage.calls('gcloud', 'compute', 'tpus', 'queued-resources', 'create')
    name = 'cfg-imagenet64'
    where = {'--project=my-project', '--zone=us-west4-a'}
    kind = {'--accelerator-type=v5litepod-64', '--runtime-version=v2-alpha-tpuv5-lite', '--spot'}
    assert create[5] == name
    assert {f'--node-id={name}'} | where | kind == set(create[6:])
    for call in stage.calls('gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh'):
        assert call[5] == name
        assert {*where, '--worker=all'} <= set(call)
    (copied,) = stage.calls('gcloud', 'compute', 'tpus', 'tpu-vm', 'scp')
    assert copied[6] == f'{name}:cfg.tar.gz'
    assert not Path(copied[5]).exists()  # the archive is gone when it was copied
    (deleted,) = stage.calls('gcloud', 'compute', 'tpus', 'queued-resources', 'delete')
    assert {'--force', '--quiet'} <= set(deleted)
    # It asked until the slice was there.
    assert len(stage.calls('gcloud', 'compute', 'tpus', 'queued-resources', 'describe')) == 4


def training_command(stage):
    (call,) = (
        word
        for call in stage.calls('gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh')
        for word in call
        if 'remote_run --' in word
    )
    return call.removeprefix('--command=')


def test_what_the_workers_are_told_to_train(stage):
    tpu(stage, 'run', outcomes=['0 0'], states=['ACTIVE'])
    last = training_command(stage).splitlines()[-1]
    words = subprocess.run(['bash', '-c', f'printf "%s\\n" {last.partition("; ")[2]}'], capture_output=True, text=True)
    arguments = words.stdout.splitlines()
    assert arguments[0] == 'remote_run'
    config = check_arguments(arguments[1:], devices=64)
    assert config.data.dir == '/var/tmp/cfg-data'
    assert '--workdir=/mnt/cfg-bucket/runs/imagenet64' in arguments
    assert config.train.checkpoint_every < 10_000  # a slice may be taken away at any time


def test_the_sweep_on_a_tpu(stage):
    flags = '--config.sampling.batch_size=1024 --config.eval.cache_dir=/mnt/cfg-bucket/cache'
    tpu(stage, 'run', outcomes=['0 0'], states=['ACTIVE'], MODE='eval', FLAGS=flags)
    assert f'--mode=eval {flags}' in training_command(stage)


def test_on_demand_is_not_spot(stage):
    tpu(stage, 'create', SPOT='0')
    assert '--spot' not in stage.calls('gcloud')[0]


def test_after_a_preemption_the_slice_is_asked_for_again(stage):
    done = tpu(stage, outcomes=['255 gone', '255 gone', '0 0 0'])
    assert done.returncode == 0, done.stderr
    assert deeds(stage) == ['create', *ONCE, *(['delete', 'create', *ONCE] * 2), 'delete']


@pytest.mark.parametrize('status', [*AGAIN, 255])
def test_while_the_slice_is_there_it_is_used_again(stage, status):
    done = tpu(stage, outcomes=[f'{status} {status} {status}', '0 0 0'])
    assert done.returncode == 0, done.stderr
    assert deeds(stage) == ['create', *ONCE, *ONCE, 'delete']


@pytest.mark.parametrize('outcome', ['2 2 2', '75 75 2 75', '143 143 2'])
def test_a_mistake_of_any_worker_ends_the_loop(stage, outcome):
    done = tpu(stage, outcomes=[outcome])
    assert done.returncode == 2
    assert 'must be mended' in done.stderr
    assert deeds(stage) == ['create', *ONCE, 'delete']


def test_an_exit_status_that_only_begins_with_2(stage):
    assert tpu(stage, outcomes=['1 25 1', '0 0 0']).returncode == 0


def test_a_slice_that_is_to_be_kept(stage):
    done = tpu(stage, outcomes=['2 2'], KEEP='1')
    assert deeds(stage) == ['create', *ONCE]
    assert 'costs money' in done.stderr


def test_not_for_ever(stage):
    done = tpu(stage, outcomes=['1 1'] * 9, MAX_RESTARTS='3')
    assert done.returncode == 1
    assert deeds(stage).count('remote_run') == 4
    assert deeds(stage)[-1] == 'delete'


def test_a_request_that_failed_is_made_again(stage):
    assert tpu(stage, outcomes=['0 0'], states=['FAILED']).returncode == 0
    assert deeds(stage) == ['delete', 'create', *ONCE, 'delete']


def test_a_loop_that_is_started_again_asks_for_nothing_new(stage):
    """Also where gcloud could not tell for a while whether the slice is there."""
    assert tpu(stage, outcomes=['0 0'], states=['BROKEN', 'BROKEN', 'PROVISIONING', 'ACTIVE']).returncode == 0
    assert deeds(stage) == [*ONCE, 'delete']


def test_a_subcommand_that_does_not_exist(stage):
    done = tpu(stage, 'strat')
    assert done.returncode == 2
    assert 'none of loop, create' in done.stderr
    assert not stage.calls()


def test_status_asks_one_worker(stage):
    done = tpu(stage, 'status', states=['ACTIVE'])
    assert 'cfg-imagenet64 is ACTIVE' in done.stdout
    (call,) = stage.calls('gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh')
    assert '--worker=0' in call
    assert 'main.py --workdir=/mnt/cfg-bucket/runs/imagenet64 --mode=status' in call[-1]


# --- Cloud TPU: what runs on a worker. --------------------------------------------------------------------------------


def sent(stage, subcommand, contains):
    """The text that a subcommand sends to the workers."""
    tpu(stage, subcommand, outcomes=['0 0'], states=['ACTIVE'])
    words = (word for call in stage.calls('gcloud') for word in call if word.startswith('--command='))
    (text,) = (word for word in words if contains in word.splitlines()[-1])
    (stage.folder / 'calls').unlink()
    return text.removeprefix('--command=')


def worker(stage, python):
    """A worker's home with an environment whose Python does this."""
    stage.stand_in('python', python, stage.folder / 'cfg' / '.venv' / 'bin')


@pytest.mark.parametrize('status', [0, 2, 75])
def test_a_worker_reports_how_the_training_ended(stage, status):
    text = sent(stage, 'run', 'remote_run')
    worker(stage, f'echo "$@"; exit {status}')
    done = stage.run('bash', '-c', text)
    assert done.returncode == status
    assert re.search(rf'^launch: \S+ ended with exit status {status}$', done.stdout, re.MULTILINE)
    assert 'main.py --config=configs/imagenet64.py' in done.stdout
    # And once more: it starts again.
    assert stage.run('bash', '-c', text).returncode == status
    assert len(stage.calls('python', 'main.py')) == 2


def wait_for(condition):
    limit = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


SAVES_AND_STOPS = 'trap "echo saved; exit 143" TERM\necho ready\nwhile :; do sleep 0.05; done'


def test_a_training_outlives_the_connection_and_is_followed_again_and_stopped(stage):
    run, stop, setup_again = (sent(stage, name, f'remote_{name}') for name in ('run', 'stop', 'setup'))
    worker(stage, SAVES_AND_STOPS)
    log = stage.folder / 'cfg-run' / 'log'
    first = subprocess.Popen(['bash', '-c', run], env=stage.environment(), stdout=subprocess.DEVNULL)
    pid = log.with_name('pid')
    wait_for(lambda: log.exists() and 'ready' in log.read_text() and pid.exists() and pid.read_text().endswith('\n'))
    first.send_signal(signal.SIGKILL)  # the connection is lost
    first.wait()
    again = subprocess.Popen(['bash', '-c', run], env=stage.environment(), stdout=subprocess.PIPE, text=True)
    assert any('ready' in line for line in iter(again.stdout.readline, ''))  # it follows
    done = stage.run('bash', '-c', setup_again)  # which the loop does first
    assert (done.returncode, done.stdout.count('training already')) == (0, 1), done.stderr
    done = stage.run('bash', '-c', stop)
    assert done.returncode == 0, done.stderr
    output = again.stdout.read()
    assert again.wait() == 143
    assert 'saved' in output
    assert len(stage.calls('python', 'main.py')) == 1


def test_a_number_of_a_process_from_before_a_reboot(stage):
    text = sent(stage, 'run', 'remote_run')
    worker(stage, 'exit 0')
    (stage.folder / 'cfg-run').mkdir()
    with subprocess.Popen(['sleep', '1000']) as other:
        (stage.folder / 'cfg-run' / 'pid').write_text(f'{other.pid}\n')  # now of something else
        done = stage.run('bash', '-c', text)
        other.kill()
    assert done.returncode == 0
    assert len(stage.calls('python', 'main.py')) == 1


def test_a_training_that_was_killed_with_its_shell_has_no_status(stage):
    text = sent(stage, 'run', 'remote_run')
    worker(stage, 'kill -KILL $PPID; exit 0')
    done = stage.run('bash', '-c', text)
    assert done.returncode == 137
    assert 'ended with exit status 137' in done.stdout


def test_a_worker_is_set_up_once(stage):
    text = sent(stage, 'setup', 'remote_setup')
    stage.stand_in('mountpoint', f'[[ -e {stage.folder}/mounted ]]')
    stage.stand_in('gcsfuse', f'touch {stage.folder}/mounted')
    stage.stand_in('sudo')
    stage.stand_in('gcloud')
    stage.stand_in('mkdir', f'[[ "$*" == */var/tmp/* ]] || exec {shutil.which("mkdir")} "$@"')
    python = stage.stand_in('python', folder=stage.folder)  # of the environment that uv makes
    stage.stand_in('uv', f'mkdir -p .venv/bin && cp {python} .venv/bin', stage.folder / '.local' / 'bin')
    stage.stand_in('python3')
    archive = stage.folder / 'cfg.tar.gz'
    subprocess.run(['git', 'archive', '--format=tar.gz', f'--output={archive}', 'HEAD'], cwd=ROOT, check=True)

    done = stage.run('bash', '-c', text)
    assert done.returncode == 0, done.stderr
    assert (stage.folder / 'cfg' / 'main.py').exists()
    (installed,) = stage.calls('python', '-m', 'pip', 'install')
    assert installed[-3:] == ['-r', 'requirements.txt', 'jax[tpu]']
    (mounted,) = stage.calls('gcsfuse')
    assert mounted[-2:] == ['my-bucket', '/mnt/cfg-bucket']
    assert '--metadata-cache-ttl-secs=0' in mounted  # the heartbeats of other hosts are those of now
    (copied,) = stage.calls('gcloud', 'storage')
    assert copied[-2:] == ['gs://my-bucket/data/prepared_images', '/var/tmp/cfg-data/prepared_images']

    assert stage.run('bash', '-c', text).returncode == 0
    assert len(stage.calls('python', '-m', 'pip', 'install')) == 1
    assert len(stage.calls('gcsfuse')) == 1
    with (stage.folder / 'cfg' / '.venv' / '.installed').open('a') as file:  # of another version
        file.write('x\n')
    assert stage.run('bash', '-c', text).returncode == 0
    assert len(stage.calls('python', '-m', 'pip', 'install')) == 2


def test_a_worker_that_cannot_be_set_up_says_so(stage):
    text = sent(stage, 'setup', 'remote_setup')
    (stage.folder / 'cfg.tar.gz').write_text('broken')
    assert stage.run('bash', '-c', text).returncode != 0


# --- Kubernetes. ------------------------------------------------------------------------------------------------------


@pytest.fixture(name='jobset', scope='module')
def jobset_fixture():
    return yaml.safe_load(JOBSET.read_text())


def job_of(jobset):
    (replicated,) = jobset['spec']['replicatedJobs']
    assert replicated['replicas'] == 1
    return replicated['name'], replicated['template']['spec']


def container_of(jobset):
    (container,) = job_of(jobset)[1]['template']['spec']['containers']
    return container


def environment_of(jobset):
    """As Kubernetes sets it: $(NAME) is the value of an earlier variable."""
    values = {}
    for entry in container_of(jobset)['env']:
        values[entry['name']] = re.sub(r'\$\((\w+)\)', lambda match: values[match[1]], entry['value'])
    return values


def test_kubernetes_accepts_the_job(jobset):
    assert (jobset['apiVersion'], jobset['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')
    _, spec = job_of(jobset)
    job = {'apiVersion': 'batch/v1', 'kind': 'Job', 'metadata': {'name': 'x'}, 'spec': spec}
    for version in ('1.31', kubernetes_validate.latest_version()):
        kubernetes_validate.validate(job, version, strict=True)
    assert all(isinstance(value, str) for value in jobset['metadata']['annotations'].values())


def test_a_mistake_ends_the_set_and_all_else_restarts_it(jobset):
    policy = jobset['spec']['failurePolicy']
    (rule,) = policy['rules']
    assert (rule['action'], rule['onJobFailureReasons']) == ('FailJobSet', ['PodFailurePolicy'])
    assert policy['maxRestarts'] >= 10
    _, spec = job_of(jobset)
    (pod_rule,) = spec['podFailurePolicy']['rules']
    assert pod_rule['action'] == 'FailJob'
    container = container_of(jobset)['name']
    assert pod_rule['onExitCodes'] == {'containerName': container, 'operator': 'In', 'values': [2]}
    # The policy asks for Never; and a pod alone is never started again.
    assert spec['template']['spec']['restartPolicy'] == 'Never'
    assert spec['backoffLimit'] == 0
    assert spec['template']['spec']['terminationGracePeriodSeconds'] >= 120


def test_the_pods_find_each_other(jobset):
    name, spec = job_of(jobset)
    set_name, subdomain = jobset['metadata']['name'], jobset['spec']['network']['subdomain']
    environment = environment_of(jobset)
    assert environment['COORDINATOR'] == f'{set_name}-{name}-0-0.{subdomain}'
    assert jobset['spec']['network']['enableDNSHostnames']
    assert jobset['spec']['network']['publishNotReadyAddresses']  # the coordinator answers before it is ready
    assert len(f'{set_name}-{name}-0-{spec["parallelism"]}-abcde') <= 63
    assert spec['completionMode'] == 'Indexed'
    assert environment['NUM_PROCESSES'] == str(spec['parallelism']) == str(spec['completions'])


def test_what_a_pod_runs(jobset, stage):
    stage.stand_in('python', 'echo $$; exit 75')
    container, environment = container_of(jobset), environment_of(jobset)
    flags = f'{environment["FLAGS"]} --config.eval.labels=*'  # which is not a pattern of files
    variables = environment | {'JOB_COMPLETION_INDEX': '1', 'FLAGS': flags}
    process = subprocess.Popen(
        container['command'], cwd=ROOT, env=stage.environment(**variables), stdout=subprocess.PIPE, text=True
    )
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 75
    assert int(output) == process.pid  # no shell stays between Kubernetes and Python
    (python,) = stage.calls('python')
    assert python[1] == 'main.py'
    assert python.pop() == '--config.eval.labels=*'
    gpus = container['resources']['limits']['nvidia.com/gpu']
    check_arguments(python[2:], devices=gpus * job_of(jobset)[1]['parallelism'])
    port = container['ports'][0]['containerPort']
    assert f'--coordinator={environment["COORDINATOR"]}:{port}' in python
    assert {'--num_processes=2', '--process_id=1', '--mode=train'} <= set(python)


def test_the_workdir_is_on_the_shared_volume(jobset):
    pod, container = job_of(jobset)[1]['template']['spec'], container_of(jobset)
    volumes = {volume['name']: volume for volume in pod['volumes']}
    mounts = {mount['mountPath']: volumes[mount['name']] for mount in container['volumeMounts']}
    assert 'persistentVolumeClaim' in mounts['/data']
    assert environment_of(jobset)['WORKDIR'].startswith('/data/')
    assert mounts['/dev/shm']['emptyDir']['medium'] == 'Memory'
