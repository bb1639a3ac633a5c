import argparse

from prunefast.cli import common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_run(parser)
    parser.add_argument("-o", "--out", metavar="FILE", help="write the page there (default: RUN/report.html)")
    parser.add_argument("--title", help="heading of the page")


def main(options: argparse.Namespace) -> int:
    from prunefast.files import RunFolder
    from prunefast.report import report

    path = report(RunFolder(options.run), out=options.out, title=options.title)
    common.say(options, f"report: {path}")
    return common.finish(options, {"report": str(path)})
