package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"time"

	"github.com/kapsel-io/kapsel/verify"
	"github.com/kapsel-io/kapsel/verify/internal/report"
	"github.com/kapsel-io/kapsel/verify/monitor"
)

const (
	alarmTimeout  = 30 * time.Second
	alarmAttempts = 3
)

// alarm is who to call.
type alarm struct{ command, url string }

// watchLine is what a program reads about one look at the log.
type watchLine struct {
	Time     string              `json:"time"`
	Log      string              `json:"log"`
	Verdict  verify.Verdict      `json:"verdict,omitempty"`
	First    bool                `json:"first,omitempty"` // nothing had been seen before
	Error    string              `json:"error,omitempty"` // why the log couldn't be checked
	Head     *verify.PackageHead `json:"head,omitempty"`
	Evidence string              `json:"evidence,omitempty"`
}

// say prints what a look at the log found, and returns the exit status that goes with it.
func (w watch) say(r monitor.Report, err error, stdout, stderr io.Writer) int {
	line := watchLine{Time: verify.FormatTime(time.Now()), Log: w.config.URL, Verdict: r.Verdict, First: r.First, Evidence: r.Evidence}
	code := exitVerified
	var text string
	switch {
	case err != nil && r.Verdict.Misconduct():
		line.Error = report.Printable(err.Error())
		code, text = exitRejected, fmt.Sprintf("ALARM %s: sizes %d and %d; %s", r.Verdict, r.Seen.TreeSize, r.Head.TreeSize, line.Error)
	case err != nil:
		line.Error = report.Printable(err.Error())
		code, text = exitUnchecked, "not checked: "+line.Error
	case r.First:
		text = fmt.Sprintf("%s: size %d, the first head seen; it is believed", r.Verdict, r.Head.TreeSize)
	case r.Verdict.Misconduct():
		code, text = exitRejected, fmt.Sprintf("ALARM %s: sizes %d and %d; evidence in %s", r.Verdict, r.Seen.TreeSize, r.Head.TreeSize, r.Evidence)
	default:
		text = fmt.Sprintf("%s: size %d, was %d", r.Verdict, r.Head.TreeSize, r.Seen.TreeSize)
	}
	if r.Head.RootHash != nil {
		line.Head = newHead(r.Head)
	}
	if w.json {
		b, err := json.Marshal(line)
		if err != nil {
			return exitUsage
		}
		return finish(stdout, string(b)+"\n", code)
	}
	out := stdout
	if code != exitVerified {
		out = stderr
	}
	return finish(out, line.Time+" "+report.Printable(text)+"\n", code)
}

// raise calls the command and the URL, and reports whether both took the alarm. What goes wrong is printed.
func (w watch) raise(ctx context.Context, v verify.Verdict, evidence, message string, stderr io.Writer) bool {
	taken := true
	for _, call := range []struct {
		name string
		err  error
	}{
		{"command", w.alarm.run(ctx, v, evidence)},
		{"url", w.alarm.post(ctx, w.config.URL, v, evidence, message)},
	} {
		if call.err != nil {
			taken = false
			finish(stderr, report.Printable(fmt.Sprintf("alarm %s: %v", call.name, call.err))+"\n", 0)
		}
	}
	return taken
}

// run starts the command itself, without a shell: nothing that a log says is ever part of a command line.
func (a alarm) run(ctx context.Context, v verify.Verdict, evidence string) error {
	if a.command == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, alarmTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, a.command, string(v), evidence).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %.200s", err, out)
	}
	return nil
}

// post sends the alarm, with the evidence itself, and tries again if it isn't taken.
func (a alarm) post(ctx context.Context, log string, v verify.Verdict, evidence, message string) error {
	if a.url == "" {
		return nil
	}
	body := map[string]any{"verdict": v, "log": log, "message": message, "evidence": nil}
	if evidence != "" {
		b, err := readFile(evidence, verify.MaxPackageSize)
		if err != nil {
			return err
		}
		body["evidence"] = json.RawMessage(b)
	}
	b, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("write alarm: %w", err)
	}
	for attempt := range alarmAttempts {
		if attempt > 0 && !wait(ctx, time.Second<<attempt) {
			return err
		}
		if err = postOnce(ctx, a.url, b); err == nil {
			return nil
		}
	}
	return err
}

func postOnce(ctx context.Context, to string, body []byte) (err error) {
	ctx, cancel := context.WithTimeout(ctx, alarmTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("send: %w", err)
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	return nil
}
