// Command kapsel-verify checks Kapsel proof packages offline, one or all of a delivery, follows a log, and judges evidence
// against one. All it trusts is the public key (or vkey) on its command line. It exits with 0 if the proof holds, 1 if it
// is rejected, and 2 if the arguments can't be used.
package main

import (
	"errors"
	"flag"
	"io"
	"os"

	"github.com/kapsel-io/kapsel/verify"
	"github.com/kapsel-io/kapsel/verify/internal/report"
)

const (
	exitVerified = 0
	exitRejected = 1
	exitUsage    = 2
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	command := ""
	if len(args) > 0 {
		command = args[0]
	}
	switch command {
	case "delivery":
		return runDelivery(args[1:], stdout, stderr)
	case "monitor":
		return runMonitor(args[1:], stdout, stderr)
	case "evidence":
		return runEvidence(args[1:], stdout, stderr)
	}
	return runPackage(args, stdout, stderr)
}

// runPackage verifies one proof package.
func runPackage(args []string, stdout, stderr io.Writer) int {
	in, err := parseArguments(args)
	if err != nil {
		return unusable(err, usage, "kapsel-verify", stdout, stderr)
	}
	check := verify.Package
	if verify.IsTLogProof(in.proof) {
		check = verify.TLog
	}
	result, err := check(in.proof, in.options)
	if errors.Is(err, verify.ErrOptions) {
		return unusable(err, usage, "kapsel-verify", stdout, stderr)
	}
	if err != nil {
		if in.json {
			if code := finish(stdout, report.RejectionJSON(err), exitRejected); code != exitRejected {
				return code
			}
		}
		return finish(stderr, report.Rejection(err), exitRejected)
	}
	if in.json {
		return finish(stdout, report.JSON(result), exitVerified)
	}
	return finish(stdout, report.Text(result), exitVerified)
}

// unusable says what is wrong with the arguments, or how to use the command if that was asked.
func unusable(err error, usage, command string, stdout, stderr io.Writer) int {
	if errors.Is(err, flag.ErrHelp) {
		return finish(stdout, usage, exitVerified)
	}
	return finish(stderr, "kapsel-verify: "+report.Printable(err.Error())+"; see "+command+" --help\n", exitUsage)
}

// finish writes text and returns code. A verdict that couldn't be written must not look like a good one.
func finish(w io.Writer, text string, code int) int {
	if _, err := io.WriteString(w, text); err != nil {
		return exitUsage
	}
	return code
}
