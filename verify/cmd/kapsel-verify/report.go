package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/kapsel-io/kapsel/verify"
)

// report is what a person reads.
func report(r *verify.Result) string {
	var b strings.Builder
	line := func(format string, args ...any) {
		b.WriteString(printable(fmt.Sprintf(format, args...)) + "\n")
	}
	line("Proof verified successfully!")
	if r.Delivered() {
		line("  Webhook delivered to %s", r.Leaf.EndpointURL)
	} else {
		line("  Webhook NOT delivered to %s: %s/%s", r.Leaf.EndpointURL, r.Leaf.Kind, r.Leaf.Outcome)
	}
	line("  Timestamp: %s", r.Leaf.Time().Format(time.RFC3339))
	line("  HTTP status: %s", status(r.Leaf))
	line("  Cryptographically signed by Kapsel (Ed25519)")
	if !r.OriginBound {
		line("  origin: not bound to a log that you named (--origin or --vkey)")
	}
	line("  payload: %s", r.Payload)
	line("  response: %s", r.Response)
	line("  url: %s", r.URL)
	line("  independent witnesses: %d, anchors: %d", r.Witnesses, r.Anchors)
	for _, w := range r.Warnings {
		line("  warning: %s", w)
	}
	return b.String()
}

func status(l *verify.Leaf) string {
	switch {
	case l.ResponseStatus != 0:
		return strconv.FormatInt(l.ResponseStatus, 10)
	case l.Error != "":
		return "none (" + l.Error + ")"
	default:
		return "none"
	}
}

// verdict is what a program reads. A rejected proof has only the first member and the error.
type verdict struct {
	Verified bool   `json:"verified"`
	Error    string `json:"error,omitempty"`
	*accepted
}

type accepted struct {
	Delivered   bool               `json:"delivered"`
	Leaf        *verify.Leaf       `json:"leaf"`
	LeafHash    verify.Hex         `json:"leaf_hash"`
	LeafIndex   uint64             `json:"leaf_index"`
	Origin      string             `json:"origin"`
	OriginBound bool               `json:"origin_bound"`
	STH         verify.PackageHead `json:"sth"`
	Payload     verify.Check       `json:"payload"`
	Response    verify.Check       `json:"response"`
	URL         verify.Check       `json:"url"`
	Witnesses   int                `json:"independent_witnesses"`
	Anchors     int                `json:"anchors"`
	Warnings    []string           `json:"warnings"`
}

func reportJSON(r *verify.Result) string {
	return encode(verdict{Verified: true, accepted: &accepted{
		Delivered: r.Delivered(), Leaf: r.Leaf, LeafHash: r.LeafHash, LeafIndex: r.LeafIndex,
		Origin: r.Origin, OriginBound: r.OriginBound, STH: verify.NewPackageHead(r.Head),
		Payload: r.Payload, Response: r.Response, URL: r.URL,
		Witnesses: r.Witnesses, Anchors: r.Anchors, Warnings: append([]string{}, r.Warnings...),
	}})
}

func rejectionJSON(err error) string {
	return encode(verdict{Error: printable(err.Error())})
}

func encode(v any) string {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil { // nothing in a verdict can fail to encode
		panic(errors.Join(errors.New("encode verdict"), err))
	}
	return string(b) + "\n"
}

// printable escapes whatever could move the cursor, reorder the text or hide in it: control, format (bidirectional)
// and other unprintable characters, and bytes that aren't UTF-8.
func printable(s string) string {
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case unicode.IsPrint(r):
			b.WriteRune(r)
		default:
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
		}
		s = s[n:]
	}
	return b.String()
}
