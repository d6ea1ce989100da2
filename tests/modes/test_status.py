from cfg.modes import status
from cfg.runs.run_files import CHECKPOINTS, CONFIG_FILE


def test_a_damaged_config_is_named_and_all_else_is_told(tmp_path):
    (tmp_path / CHECKPOINTS).mkdir()
    for content in (b'', b'{"train": {', b'{}', b'\xff', b'[]'):
        (tmp_path / CONFIG_FILE).write_bytes(content)
        lines = status.run(str(tmp_path)).splitlines()
        assert f'damaged: {tmp_path / CONFIG_FILE} (the next start writes it anew)' in lines
        assert 'checkpoints: none' in lines
