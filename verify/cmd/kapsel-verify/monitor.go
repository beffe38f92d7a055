package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/kapsel-io/kapsel/verify"
	"github.com/kapsel-io/kapsel/verify/internal/report"
	"github.com/kapsel-io/kapsel/verify/monitor"
)

const monitorUsage = `kapsel-verify monitor follows a log and demands that every head it publishes contains the one seen before. When the
log contradicts itself, it keeps evidence, raises the alarm and stops.

Usage:
  kapsel-verify monitor --log URL --public-key HEX --state FILE [flags]
  kapsel-verify monitor --log URL --vkey VKEY --state FILE [flags]

What to follow:
  --log URL            where the log's checkpoint is: https://host/log/log_…
  --interval DURATION  time between two looks (default 1m)
  --once               look once and exit

What you trust (get it from Kapsel's operator):
  --public-key HEX  --vkey VKEY
  --origin NAME        the log's name, if it isn't host and path of the URL
  --transition FILE    the note of a change of the log's key (may be repeated, oldest first)

What is kept:
  --state FILE         the newest head. Keep it: without it, the monitor believes the first head it sees
  --evidence DIR       where evidence goes (default: beside the state)

Alarm (split, fork, rollback; and silent: no newer head for too long):
  --alarm-command PROGRAM  run with two arguments, the verdict and the file with the evidence ("" if silent)
  --alarm-url URL          sent a POST with {"verdict", "log", "message", "evidence"} in JSON
  --patience DURATION      how old the newest head may get before the log is silent (default 1h; an idle log signs
                           every 10 min)

Output:
  --json               one JSON object a line instead of text
  --help               this text

Exit status: 0 all is well (--once, or stopped by a signal), 1 the log contradicted itself or is silent (--once), 2 the
arguments or the state can't be used, 3 the log couldn't be checked (--once).

Example:
  kapsel-verify monitor --log https://kapsel.example/log/log_01h455vb4pex5vsknk084sn02q --vkey "$(cat kapsel.vkey)" \
    --state kapsel.monitor.json --alarm-command ./page-me
`

// exitUnchecked: nothing could be found out.
const exitUnchecked = 3

// silent is an alarm but no verdict on two heads.
const silent verify.Verdict = "silent"

// maxTransitions bounds how many notes of key changes are read.
const maxTransitions = 64

// watch is a command line that can be used.
type watch struct {
	config   monitor.Config
	alarm    alarm
	interval time.Duration
	patience time.Duration
	once     bool
	json     bool
}

func runMonitor(args []string, stdout, stderr io.Writer) int {
	w, err := parseWatch(args)
	if err != nil {
		return unusable(err, monitorUsage, "kapsel-verify monitor", stdout, stderr)
	}
	m, err := monitor.New(w.config)
	if err != nil {
		return unusable(err, monitorUsage, "kapsel-verify monitor", stdout, stderr)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return w.follow(ctx, m, stdout, stderr)
}

func parseWatch(args []string) (watch, error) {
	var w watch
	var o verify.Options
	fs := flag.NewFlagSet("", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	trustFlags(fs, &o)
	fs.StringVar(&w.config.URL, "log", "", "")
	fs.StringVar(&w.config.State, "state", "", "")
	fs.StringVar(&w.config.Evidence, "evidence", "", "")
	fs.StringVar(&w.alarm.command, "alarm-command", "", "")
	fs.StringVar(&w.alarm.url, "alarm-url", "", "")
	fs.DurationVar(&w.interval, "interval", time.Minute, "")
	fs.DurationVar(&w.patience, "patience", time.Hour, "")
	fs.BoolVar(&w.once, "once", false, "")
	fs.BoolVar(&w.json, "json", false, "")
	fs.Func("transition", "", func(path string) error {
		note, err := readFile(path, verify.MaxNoteSize)
		if len(w.config.Transitions) == maxTransitions {
			err = fmt.Errorf("more than %d", maxTransitions)
		}
		w.config.Transitions = append(w.config.Transitions, note)
		return err
	})
	if err := fs.Parse(args); err != nil {
		return w, err
	}
	switch {
	case fs.NArg() > 0:
		return w, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	case w.config.URL == "":
		return w, errors.New("no log: give --log URL")
	case w.config.State == "":
		return w, errors.New("no state: give --state FILE, and keep that file")
	case w.interval < time.Second:
		return w, errors.New("--interval is less than 1s")
	case w.patience < time.Second:
		return w, errors.New("--patience is less than 1s")
	}
	if u, err := url.Parse(w.alarm.url); w.alarm.url != "" && (err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http") {
		return w, errors.New("--alarm-url is no http or https URL")
	}
	if w.config.Evidence == "" {
		w.config.Evidence = filepath.Dir(w.config.State)
	}
	err := trusted(&o)
	w.config.PublicKey, w.config.Origin = o.PublicKey, o.Origin
	return w, err
}

// follow looks at the log until it contradicts itself, the context ends, or once.
func (w watch) follow(ctx context.Context, m *monitor.Monitor, stdout, stderr io.Writer) int {
	started := time.Now()
	alarmed := false // about the silence that goes on
	for {
		found, err := m.Check(ctx)
		if ctx.Err() != nil {
			return exitVerified
		}
		// Before anything else: an alarm mustn't be lost because the evidence couldn't be written.
		if found.Verdict.Misconduct() {
			w.say(found, err, stdout, stderr)
			w.raise(ctx, found.Verdict, found.Evidence, alarmMessage(err), stderr)
			return exitRejected
		}
		if errors.Is(err, monitor.ErrState) {
			return unusable(err, monitorUsage, "kapsel-verify monitor", stdout, stderr)
		}
		code := w.say(found, err, stdout, stderr)
		quiet, since := w.silence(m, started)
		if quiet && !alarmed { // an alarm that nobody took is raised again at the next look
			alarmed = w.raise(ctx, silent, "", "no newer head since "+verify.FormatTime(since), stderr)
		}
		alarmed = alarmed && quiet
		if w.once && quiet {
			return exitRejected
		}
		if w.once {
			return code
		}
		if !wait(ctx, w.interval) {
			return exitVerified
		}
	}
}

func alarmMessage(err error) string {
	if err != nil {
		return "the log contradicted itself; " + report.Printable(err.Error())
	}
	return "the log contradicted itself"
}

// silence reports whether the newest head that was verified is too old; before the first, the start counts.
func (w watch) silence(m *monitor.Monitor, started time.Time) (quiet bool, since time.Time) {
	since, err := m.Newest()
	if err != nil || since.IsZero() {
		since = started
	}
	return time.Since(since) > w.patience, since
}

// wait reports false if the context ended first.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
