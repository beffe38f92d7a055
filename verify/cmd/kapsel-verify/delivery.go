package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/kapsel-io/kapsel/verify"
	"github.com/kapsel-io/kapsel/verify/internal/report"
)

const deliveryUsage = `kapsel-verify delivery takes the proof packages of one delivery and says whether the chain from its first attempt to
the leaf that ended it is complete, in order and consistent, or what is missing.

Usage:
  kapsel-verify delivery --proofs DIR --public-key HEX [flags]
  kapsel-verify delivery --proofs DIR --vkey VKEY [flags]

What you have:
  --proofs DIR        a directory with the packages; every file in it whose name ends in .json is read

What you trust:
  --public-key HEX  --vkey VKEY  --origin NAME  --witness VKEY  --quorum N
                      as for a single package, see kapsel-verify --help
  --successor VKEY    of the log that went on when that one was closed, if the delivery has leaves in both; once for
                      each successor, in their order

What you hold, to be compared with every package:
  --payload FILE  --url URL  --delivery ID  --event ID  --tenant ID

Output:
  --json              one JSON object instead of text
  --help              this text

Exit status: 0 the chain is complete, 1 it is rejected or something is missing, 2 the arguments can't be used.

Example:
  kapsel-verify delivery --proofs proofs/ --vkey "$(cat kapsel.vkey)" --payload body.json
`

// maxPackages bounds a directory: no delivery has this many attempts.
const maxPackages = 10_000

func runDelivery(args []string, stdout, stderr io.Writer) int {
	var o verify.Options
	fs := newFlags(&o)
	dir := fs.String("proofs", "", "")
	asJSON := fs.Bool("json", false, "")
	fs.Func("successor", "", func(s string) error { o.Successors = append(o.Successors, s); return nil })
	err := fs.Parse(args)
	if err == nil {
		err = checkDelivery(fs, o, *dir)
	}
	var names []string
	var packages [][]byte
	if err == nil {
		names, packages, err = readPackages(*dir)
	}
	if err != nil {
		return unusable(err, deliveryUsage, "kapsel-verify delivery", stdout, stderr)
	}
	chain, err := verify.Delivery(packages, o)
	switch {
	case errors.Is(err, verify.ErrOptions):
		return unusable(err, deliveryUsage, "kapsel-verify delivery", stdout, stderr)
	case err != nil && *asJSON:
		return finish(stdout, report.Encode(chainVerdict{Error: report.Printable(nameFile(err, names))}), exitRejected)
	case err != nil:
		return finish(stderr, "Chain rejected: "+report.Printable(nameFile(err, names))+"\n", exitRejected)
	}
	code := exitVerified
	if !chain.Complete() {
		code = exitRejected
	}
	if *asJSON {
		return finish(stdout, report.Encode(newChainVerdict(chain)), code)
	}
	return finish(stdout, chainReport(chain), code)
}

func checkDelivery(fs *flag.FlagSet, o verify.Options, dir string) error {
	switch {
	case fs.NArg() > 0:
		return fmt.Errorf("unexpected argument %q", fs.Arg(0))
	case dir == "":
		return errors.New("no proof packages: give --proofs DIR")
	case o.PublicKey == nil && o.VKey == "":
		return errNoKey
	}
	return nil
}

// readPackages reads every file of a directory whose name ends in .json, in the order of names.
func readPackages(dir string) (names []string, packages [][]byte, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("read proof packages: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() || !strings.HasSuffix(strings.ToLower(e.Name()), ".json") {
			continue
		}
		if len(packages) == maxPackages {
			return nil, nil, fmt.Errorf("%s holds more than %d packages", dir, maxPackages)
		}
		b, err := readFile(filepath.Join(dir, e.Name()), verify.MaxPackageSize)
		if err != nil {
			return nil, nil, err
		}
		names, packages = append(names, e.Name()), append(packages, b)
	}
	if len(packages) == 0 {
		return nil, nil, fmt.Errorf("%s holds no file whose name ends in .json; download the packages of the delivery's attempts into it", dir)
	}
	return names, packages, nil
}
