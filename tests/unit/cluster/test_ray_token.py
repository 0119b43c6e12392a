"""Ray's token is for its user alone."""

from pathlib import Path

from hybridrl.cluster.ray_local import keep_private


def test_nobody_else_reads_it(tmp_path: Path) -> None:
    token = tmp_path / "auth_token"
    token.write_text("secret")
    token.chmod(0o644)
    keep_private(token)
    assert token.stat().st_mode & 0o777 == 0o600
    keep_private(tmp_path / "none")
