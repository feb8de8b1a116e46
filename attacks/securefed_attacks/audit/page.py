from securefed.tracking import html


def render(report):
    return html.page("audit", [html.preformatted(report.text())])
