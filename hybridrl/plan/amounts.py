"""Bytes and seconds as a plan prints them."""


def gb(size: float) -> str:
    return f"{size / 1e12:.1f} TB" if size >= 1e12 else f"{size / 1e9:.1f} GB" if size >= 1e8 else mb(size)


def mb(size: float) -> str:
    return f"{size / 1e6:.1f} MB" if size else "-"


def seconds(number: float) -> str:
    return f"{number:,.0f} s" if number >= 10 else f"{number:.2f} s"
