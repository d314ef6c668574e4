"""Checks that rules and dashboards ask for what a server exports; check.sh runs it.

  check_expressions.py tested ALERTS TESTS...          every alert has a test that fires and one that does not
  check_expressions.py live URL LOAD_REPORT DASHBOARDS...   against a Prometheus that scraped a loaded CPU server

Prints each failure; exits with 1 if there was any.
"""

import json
import math
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

# What a healthy CPU server has no data for.
NO_DATA_METRICS = ("DCGM_", "flashbias_cuda_errors_total")
NO_DATA_PANELS = {("flashbias-clients", "Errors by method and code")}

SELECTOR = re.compile(r"(?<![\w:])((?:flashbias|process)_[a-z_]+|up)(?![\w:(])(\{[^}]*\})?")
MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')

failures = []


def fail(text):
    failures.append(text)
    print("FAIL", text)


class Prometheus:
    def __init__(self, url):
        self.url = url

    def get(self, path, **parameters):
        query = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise ValueError(json.load(error).get("error", str(error))) from error

    def query(self, expression, at):
        """The values of an instant query; ValueError where it does not parse or run."""
        data = self.get("query", query=expression, time=at)
        if data["resultType"] == "scalar":
            return [float(data["result"][1])]
        return [float(series["value"][1]) for series in data["result"]]


def check_data(prometheus, where, expression, at, may_be_empty):
    try:
        values = prometheus.query(expression, at)
    except ValueError as error:
        fail(f"{where}: {error}: {expression}")
        return
    if not values and not may_be_empty:
        fail(f"{where}: no data: {expression}")
    if not all(map(math.isfinite, values)):
        fail(f"{where}: values that are not finite: {expression}")


def has_no_data(expression):
    return any(name in expression for name in NO_DATA_METRICS)


def check_selectors(prometheus, where, expression, at, seen):
    """Every series that is named exists, every value that a matcher names too: series begin at zero."""
    for name, matchers in SELECTOR.findall(expression):
        if name.startswith(NO_DATA_METRICS):
            continue
        wanted = [name + matchers]
        for label, operator, pattern in MATCHER.findall(matchers):
            if re.fullmatch(r"\w+(\|\w+)*", pattern):
                wanted += [f'{name}{{{label}="{value}"}}' for value in pattern.split("|")]
        for selector in wanted:
            if selector not in seen:
                seen.add(selector)
                check_data(prometheus, where, f"count({selector})", at, may_be_empty=False)


def panels(board):
    for panel in board["panels"]:
        yield panel
        yield from panel.get("panels", [])


def check_dashboard(prometheus, board, at, instance, seen):
    uid = board["uid"]
    names = {variable["name"] for variable in board["templating"]["list"]}
    for name in ("datasource", "instance", "method"):
        if name not in names:
            fail(f"{uid}: no variable {name}")
    ids = [panel["id"] for panel in panels(board)]
    if len(ids) != len(set(ids)):
        fail(f"{uid}: two panels have one id")
    count = 0
    for panel in panels(board):
        where = f"{uid}: {panel['title']}"
        if not panel.get("description"):
            fail(f"{where}: no description")
        if not panel["fieldConfig"]["defaults"].get("unit"):
            fail(f"{where}: no unit")
        if not panel["targets"]:
            fail(f"{where}: no expression")
        for target in panel["targets"]:
            # All, then one of each.
            for chosen, method in ((".*", ".*"), (re.escape(instance), "Attend")):
                expression = target["expr"]
                values = {
                    "$__rate_interval": "10s",
                    "$dcgm_instance": ".*",
                    "$instance": chosen.replace("\\", "\\\\"),
                    "$method": method,
                }
                for variable, value in values.items():
                    expression = expression.replace(variable, value)
                if "$" in expression:
                    fail(f"{where}: an unknown variable: {expression}")
                empty = has_no_data(expression) or (uid, panel["title"]) in NO_DATA_PANELS
                check_data(prometheus, where, expression, at, empty)
                check_selectors(prometheus, where, expression, at, seen)
                count += 1
    return count


def check_rules(prometheus, at, seen):
    count = 0
    for group in prometheus.get("rules")["groups"]:
        for rule in group["rules"]:
            where = f"{group['name']}: {rule['name']}"
            count += 1
            if rule["health"] != "ok":
                fail(f"{where}: {rule['health']}: {rule.get('lastError', '')}")
            check_selectors(prometheus, where, rule["query"], at, seen)
            if rule["type"] == "alerting":
                check_data(prometheus, where, rule["query"], at, may_be_empty=True)
                if rule["state"] != "inactive":
                    fail(f"{where}: {rule['state']} on a healthy server")
            else:
                check_data(prometheus, where, rule["query"], at, has_no_data(rule["query"]))
                check_data(prometheus, where, rule["name"], at, has_no_data(rule["query"]))
    return count


def check_counts(prometheus, report):
    """Waits for the last scrape; the server counted what the load generator got."""
    for method in ("Attend", "AttendBackward"):
        wanted = report["requests_succeeded"]
        got = []
        for _ in range(20):
            expression = f'sum(flashbias_requests_total{{method="{method}"}})'
            got = prometheus.query(expression, time.time())
            if got == [wanted]:
                print(f"{method}: {wanted} calls counted, as many as sent")
                break
            time.sleep(0.25)
        else:
            fail(f"{method}: the load generator counts {wanted} calls, Prometheus {got}")


def live(url, report_path, boards):
    prometheus = Prometheus(url)
    with open(report_path, encoding="utf-8") as file:
        report = json.load(file)
    if not report["requests_succeeded"] or report["requests_failed"]:
        fail(f"the load: {report['requests_succeeded']} succeeded, {report['requests_failed']} failed")
    check_counts(prometheus, report)
    at = time.time()
    instance = prometheus.get("targets")["activeTargets"][0]["labels"]["instance"]
    seen = set()
    rules = check_rules(prometheus, at, seen)
    if not rules:
        fail("Prometheus has no rules")
    queries = 0
    for path in boards:
        with open(path, encoding="utf-8") as file:
            queries += check_dashboard(prometheus, json.load(file), at, instance, seen)
    print(f"{rules} rules, {queries} queries of {len(boards)} dashboards, {len(seen)} selectors")


def tested(alerts_path, test_paths):
    """Follows the one form in which the tests ask for alerts; they need no YAML parser."""
    with open(alerts_path, encoding="utf-8") as file:
        alerts = re.findall(r"- alert: (\w+)", file.read())
    outcomes = set()
    for path in test_paths:
        with open(path, encoding="utf-8") as file:
            for name, rest in re.findall(
                r"expr: 'ALERTS\{alertname=\"(\w+)\", alertstate=\"firing\"\}'\n"
                r" +eval_time: \w+\n +exp_samples:(.*)",
                file.read(),
            ):
                outcomes.add((name, "not firing" if "[]" in rest else "firing"))
    for alert in alerts:
        for outcome in ("firing", "not firing"):
            if (alert, outcome) not in outcomes:
                fail(f"{alert}: no unit test in which it is {outcome}")
    print(f"{len(alerts)} alerts, each tested firing and not firing")


def main():
    if sys.argv[1:2] == ["tested"] and len(sys.argv) > 3:
        tested(sys.argv[2], sys.argv[3:])
    elif sys.argv[1:2] == ["live"] and len(sys.argv) > 4:
        live(sys.argv[2], sys.argv[3], sys.argv[4:])
    else:
        sys.exit(__doc__)
    sys.exit(1 if failures else 0)


main()
