package main

import (
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/kapsel-io/kapsel/verify"
)

const usage = `kapsel-verify checks a Kapsel proof package offline. It trusts nothing but the key you give it.

Usage:
  kapsel-verify --proof FILE --public-key HEX [flags]
  kapsel-verify --proof FILE --vkey VKEY [flags]
  kapsel-verify delivery | monitor | evidence …

Other commands, each with a --help of its own:
  delivery            verify all packages of one delivery, and that none is missing
  monitor             follow a log and raise the alarm when it contradicts itself
  evidence            judge what a monitor kept of a log that did

What you have:
  --proof FILE        the proof package, or a proof as text (c2sp.org/tlog-proof@v1)

What you trust (get it from Kapsel's operator, not out of the package):
  --public-key HEX    the log's Ed25519 key, 64 hex digits
  --vkey VKEY         the log's name and key: name+keyid+base64
  --origin NAME       the log's name; needed to bind the proof to one log if you give --public-key only
  --witness VKEY      a witness whose cosignature counts (may be repeated)
  --quorum N          how many of these witnesses must have cosigned

What you hold, to be compared with what was recorded:
  --payload FILE      the webhook's body, byte for byte
  --response FILE     the receiver's response body
  --url URL           the full URL that it was sent to
  --attempt ID  --delivery ID  --event ID  --tenant ID
  --leaf FILE         the leaf's exact bytes, if you kept them
  --leaf-hash HEX     its hash, such as the Kapsel-Leaf-Hash that you were answered; of a leaf that was erased one of
                      both is all that a proof as text can be checked with

Output:
  --json              one JSON object instead of text
  --help              this text

Exit status: 0 the proof holds, 1 it is rejected, 2 the arguments can't be used.

Examples:
  kapsel-verify --proof proof.json --public-key 3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29
  kapsel-verify --proof proof.json --public-key "$(cat kapsel.pub)" --payload body.json --url 'https://example.com/webhook?v=2'
  kapsel-verify --proof evt_….proof.json --vkey "$(cat vkey)" --payload sent.json --leaf-hash 2184664f27c58057850bf2508d1523511e1fa531c40b92db5e376eed0115c599
`

// maxHeld bounds files that are compared: far more than Kapsel accepts as a webhook.
const maxHeld = 64 << 20

// arguments is a command line that can be used.
type arguments struct {
	proof   []byte
	options verify.Options
	json    bool
}

// parseArguments reads the command line and the files that it names. It returns flag.ErrHelp for --help.
func parseArguments(args []string) (arguments, error) {
	var in arguments
	o := &in.options
	fs := newFlags(o)
	proof := fs.String("proof", "", "")
	fs.BoolVar(&in.json, "json", false, "")
	fs.Func("response", "", func(s string) (err error) { o.Response, err = heldFile(s); return err })
	fs.Func("leaf", "", func(s string) (err error) { o.Leaf, err = heldFile(s); return err })
	fs.Func("leaf-hash", "", func(s string) (err error) { o.LeafHash, err = leafHash(s); return err })
	fs.Func("attempt", "", func(s string) error { o.Attempt = &s; return nil })
	if err := fs.Parse(args); err != nil {
		return in, err
	}
	switch {
	case fs.NArg() > 0:
		return in, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	case *proof == "":
		return in, errors.New("no proof package: give --proof FILE")
	case o.PublicKey == nil && o.VKey == "":
		return in, errNoKey
	}
	b, err := readFile(*proof, verify.MaxPackageSize)
	if err == nil && len(b) == 0 {
		err = fmt.Errorf("%s is empty; download the proof package again", *proof)
	}
	in.proof = b
	return in, err
}

var errNoKey = errors.New("no key to trust: give --public-key HEX or --vkey VKEY, as published by the log's operator")

// newFlags makes the flags that a package and a delivery share.
func newFlags(o *verify.Options) *flag.FlagSet {
	fs := flag.NewFlagSet("kapsel-verify", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	trustFlags(fs, o)
	fs.IntVar(&o.Quorum, "quorum", 0, "")
	fs.Func("witness", "", func(s string) error { o.Witnesses = append(o.Witnesses, s); return nil })
	fs.Func("payload", "", func(s string) (err error) { o.Payload, err = heldFile(s); return err })
	for name, field := range map[string]**string{"url": &o.URL, "delivery": &o.Delivery, "event": &o.Event, "tenant": &o.Tenant} {
		fs.Func(name, "", func(s string) error { *field = &s; return nil })
	}
	return fs
}

// trustFlags are the log's key and name.
func trustFlags(fs *flag.FlagSet, o *verify.Options) {
	fs.Func("public-key", "", func(s string) (err error) { o.PublicKey, err = publicKey(s); return err })
	for name, field := range map[string]*string{"vkey": &o.VKey, "origin": &o.Origin} {
		fs.Func(name, "", func(s string) error { // a variable that isn't set mustn't take away what the user trusts
			if *field = s; s == "" {
				return errors.New("is empty")
			}
			return nil
		})
	}
}

// trusted settles which key and name the flags of trustFlags name; the name is "" if they name none.
func trusted(o *verify.Options) error {
	switch {
	case o.VKey == "" && o.PublicKey == nil:
		return errNoKey
	case o.VKey == "":
		return nil
	}
	origin, key, err := verify.ParseVKey(o.VKey)
	if err != nil {
		return err
	}
	if o.Origin != "" && o.Origin != origin || o.PublicKey != nil && !o.PublicKey.Equal(key) {
		return errors.New("the vkey contradicts the public key or the origin")
	}
	o.Origin, o.PublicKey = origin, key
	return nil
}

func publicKey(s string) ([]byte, error) {
	key, err := hex.DecodeString(s)
	if err != nil || len(key) != 32 {
		return nil, errors.New("want 64 hex digits")
	}
	return key, verify.CheckPublicKey(key)
}

func leafHash(s string) (*[]byte, error) {
	hash, err := hex.DecodeString(s)
	if err != nil || len(hash) != verify.HashSize {
		return nil, errors.New("want 64 hex digits")
	}
	return &hash, nil
}

func heldFile(path string) (*[]byte, error) {
	b, err := readFile(path, maxHeld)
	if err != nil {
		return nil, err
	}
	if len(b) > maxHeld {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxHeld)
	}
	return &b, nil
}

// readFile reads at most one byte more than limit, so that whoever judges the size can tell that there is too much.
func readFile(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read file: %w", err)
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return b, nil
}
