// Package report writes what a verifier has to say, for people and for programs, the same in the command and in the browser.
package report

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

// Text is what a person reads about a verified package.
func Text(r *verify.Result) string {
	var b strings.Builder
	line := func(format string, args ...any) {
		b.WriteString(Printable(fmt.Sprintf(format, args...)) + "\n")
	}
	line("Proof verified successfully!")
	line("  %s", whatHappened(r))
	if r.Leaf != nil {
		line("  Timestamp: %s", r.Leaf.Time().Format(time.RFC3339))
		line("  HTTP status: %s", Status(r.Leaf))
	}
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

// whatHappened is the line that people look for. Only a delivered attempt says that something was delivered.
func whatHappened(r *verify.Result) string {
	switch l := r.Leaf; {
	case l == nil:
		return fmt.Sprintf("Log entry %d has the leaf hash %x; what it says is not known, because its bytes are erased", r.LeafIndex, r.LeafHash)
	case r.Delivered():
		return "Webhook delivered to " + l.EndpointURL
	case l.Kind == verify.KindAccepted:
		return "Webhook accepted as " + l.EventID + ", which is NOT proof of any delivery"
	default:
		return fmt.Sprintf("Webhook NOT delivered to %s: %s/%s", l.EndpointURL, l.Kind, l.Outcome)
	}
}

// Status is the response's status, or why there is none.
func Status(l *verify.Leaf) string {
	switch {
	case l.ResponseStatus != 0:
		return strconv.FormatInt(l.ResponseStatus, 10)
	case l.Error != "":
		return "none (" + l.Error + ")"
	default:
		return "none"
	}
}

// Rejection is the one line that says which step failed.
func Rejection(err error) string {
	if errors.Is(err, verify.ErrUnknownKind) {
		return "Log" + strings.TrimPrefix(Printable(err.Error()), "log") + "\n"
	}
	return fmt.Sprintf("Proof rejected: %s\n", Printable(err.Error()))
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

// JSON is what a program reads about a verified package.
func JSON(r *verify.Result) string {
	return Encode(verdict{Verified: true, accepted: &accepted{
		Delivered: r.Delivered(), Leaf: r.Leaf, LeafHash: r.LeafHash, LeafIndex: r.LeafIndex,
		Origin: r.Origin, OriginBound: r.OriginBound, STH: verify.NewPackageHead(r.Head),
		Payload: r.Payload, Response: r.Response, URL: r.URL,
		Witnesses: r.Witnesses, Anchors: r.Anchors, Warnings: append([]string{}, r.Warnings...),
	}})
}

// RejectionJSON is what a program reads about a rejected one.
func RejectionJSON(err error) string {
	return Encode(verdict{Error: Printable(err.Error())})
}

// Encode writes indented JSON of something that can't fail to encode.
func Encode(v any) string {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil { // nothing in a verdict can fail to encode
		panic(errors.Join(errors.New("encode verdict"), err))
	}
	return string(b) + "\n"
}

// Printable escapes whatever could move the cursor, reorder the text or hide in it: control, format (bidirectional)
// and other unprintable characters, and bytes that aren't UTF-8.
func Printable(s string) string {
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
