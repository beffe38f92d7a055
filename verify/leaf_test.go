package verify_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gowebpki/jcs"
	"pgregory.net/rapid"

	"github.com/kapsel-io/kapsel/verify"
	"github.com/kapsel-io/kapsel/verify/internal/testlog"
)

// drawLeaf makes any leaf that the format allows.
func drawLeaf(r *rapid.T) *verify.Leaf {
	integer := func(name string, least int64) int64 { return rapid.Int64Range(least, 1<<53-1).Draw(r, name) }
	hash := func(name string) string { return rapid.StringMatching(`[0-9a-f]{64}`).Draw(r, name) }
	typeID := func(prefix string) string {
		return rapid.StringMatching(prefix+`_[0-7][0-9a-hjkmnp-tv-z]{25}`).Draw(r, prefix)
	}
	l := &verify.Leaf{
		AttemptID: typeID("da"), AttemptNumber: integer("number", 1),
		AttemptedAt: verify.FormatTime(time.UnixMilli(rapid.Int64Range(0, 4e12).Draw(r, "time"))),
		DeliveryID:  typeID("dlv"), DestinationID: typeID("dst"), DurationMS: integer("duration", 0), EndpointID: typeID("ep"),
		EndpointURL: rapid.StringMatching(`https?://([a-z0-9]{1,9}\.)?example(:[1-7][0-9]{3})?(/[!$&'()*+,\-.0-9:;=@A-Z_a-z~%]{0,20}){0,3}`).Draw(r, "url"),
		Error:       rapid.SampledFrom([]string{"", "timeout", "connection_refused"}).Draw(r, "error"), EventID: typeID("evt"),
		HeadersHash: hash("headers"), Kind: rapid.SampledFrom([]string{"attempt", "dead", "skipped", "canceled", "accepted"}).Draw(r, "kind"),
		LostStarts: integer("lost", 0), Nonce: hash("nonce")[:32], Origin: "kapsel.example/log/" + typeID("log"),
		Outcome: "exhausted", PayloadHash: hash("payload"), PayloadSize: integer("payload size", 0),
		Seq: integer("seq", 1), TenantID: typeID("ten"), URLHash: hash("url hash"), V: 1,
	}
	if l.Kind == verify.KindAttempt {
		l.Outcome = rapid.SampledFrom([]string{"retry", "failed"}).Draw(r, "outcome")
	}
	if l.Seq > 1 {
		l.PreviousLeafHash = hash("previous")
	}
	if l.ResponseStatus = rapid.SampledFrom([]int64{0, 200, 404, 503}).Draw(r, "status"); l.ResponseStatus != 0 {
		l.ResponseHash, l.ResponseSize = hash("response"), integer("response size", 0)
		l.ResponseTruncated = rapid.Bool().Draw(r, "truncated")
	}
	return l
}

func TestLeafRoundTripAndCanonicalForm(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(r *rapid.T) {
		l := drawLeaf(r)
		b, err := l.Bytes()
		must(r, err)
		again, err := verify.ParseLeaf(b)
		must(r, err)
		if *again != *l {
			r.Fatalf("got %+v, want %+v", again, l)
		}
		canonical, err := jcs.Transform(b)
		must(r, err)
		if !bytes.Equal(canonical, b) {
			r.Fatalf("RFC 8785 writes\n%s\nnot\n%s", canonical, b)
		}
	})
}

func TestAFlippedLeafByteNeverParsesToTheSameLeaf(t *testing.T) {
	t.Parallel()
	b, err := testlog.New(1).Leaf(7).Bytes()
	must(t, err)
	want, err := verify.ParseLeaf(b)
	must(t, err)
	for i := range b {
		for _, mask := range []byte{1, 0x20, 0x80} {
			tampered := bytes.Clone(b)
			tampered[i] ^= mask
			if got, err := verify.ParseLeaf(tampered); err == nil && *got == *want {
				t.Fatalf("byte %d: two spellings of one leaf", i)
			}
		}
	}
}

func TestParseLeafRejectsOtherSpellings(t *testing.T) {
	t.Parallel()
	b, err := testlog.New(1).Leaf(7).Bytes()
	must(t, err)
	good := string(b)
	edit := func(old, new string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("%q isn't in the leaf", old)
		}
		return strings.Replace(good, old, new, 1)
	}
	for name, s := range map[string]string{
		"empty":                   "",
		"null":                    "null",
		"array":                   "[]",
		"empty object":            "{}",
		"a key transition":        "kapsel.io/key-transition/v1\n",
		"whitespace":              edit(`"v":1`, `"v": 1`),
		"leading space":           " " + good,
		"trailing newline":        good + "\n",
		"trailing value":          good + "{}",
		"byte order mark":         "\ufeff" + good,
		"unknown member":          edit(`"v":1`, `"v":1,"w":1`),
		"missing member":          edit(`"error":"",`, ``),
		"repeated member":         edit(`"error":"",`, `"error":"","error":"",`),
		"null member":             edit(`"error":""`, `"error":null`),
		"another order":           edit(`"seq":1,`, ``)[:len(good)-len(`"seq":1,`)-1] + `,"seq":1}`,
		"another case":            edit(`"seq"`, `"Seq"`),
		"long s":                  edit(`"seq"`, `"ſeq"`),
		"kelvin sign":             edit(`"kind"`, "\"\u212aind\""),
		"escaped slash":           edit(`https://`, `https:\/\/`),
		"escaped letter":          edit(`"delivered"`, `"d\u0065livered"`),
		"float":                   edit(`"duration_ms":41`, `"duration_ms":41.0`),
		"exponent":                edit(`"duration_ms":41`, `"duration_ms":41e0`),
		"leading zero":            edit(`"duration_ms":41`, `"duration_ms":041`),
		"minus zero":              edit(`"lost_starts":0`, `"lost_starts":-0`),
		"negative":                edit(`"lost_starts":0`, `"lost_starts":-1`),
		"2^53":                    edit(`"lost_starts":0`, `"lost_starts":9007199254740992`),
		"integer as string":       edit(`"lost_starts":0`, `"lost_starts":"0"`),
		"invalid UTF-8":           edit(`"error":""`, "\"error\":\"\xff\""),
		"version 2":               edit(`"v":1`, `"v":2`),
		"attempt 0":               edit(`"attempt_number":1`, `"attempt_number":0`),
		"seq 0":                   edit(`"seq":1`, `"seq":0`),
		"seq 2 without a hash":    edit(`"seq":1`, `"seq":2`),
		"wrong prefix":            edit(`"da_`, `"dx_`),
		"uppercase ID":            edit(`"da_00`, `"da_0A`),
		"ID with u":               edit(`"da_00`, `"da_0u`),
		"long ID":                 edit(`"da_0`, `"da_00`),
		"ID beyond 128 bits":      edit(`"da_0`, `"da_8`),
		"empty delivery":          edit(`"delivery_id":"dlv_00000000000000000000000007"`, `"delivery_id":""`),
		"uppercase hash":          edit(`"payload_hash":"`, `"payload_hash":"A`),
		"empty payload hash":      edit(`"payload_hash":"`, `"payload_hash":"","x":"`),
		"time without ms":         edit(`10:30:45.130Z`, `10:30:45Z`),
		"time with micros":        edit(`10:30:45.130Z`, `10:30:45.130000Z`),
		"time with offset":        edit(`10:30:45.130Z`, `10:30:45.130+00:00`),
		"time with comma":         edit(`10:30:45.130Z`, `10:30:45,130Z`),
		"February 30":             edit(`2024-01-15`, `2024-02-30`),
		"free-text error":         edit(`"error":""`, `"error":"it broke"`),
		"unknown outcome":         edit(`"delivered"`, `"maybe"`),
		"delivered with 500":      edit(`"response_status":200`, `"response_status":500`),
		"status 99":               edit(`"response_status":200`, `"response_status":99`),
		"response without status": edit(`"response_status":200`, `"response_status":0`),
		"origin with space":       edit(`kapsel.example`, `kapsel example`),
		"origin with plus":        edit(`kapsel.example`, `kapsel+example`),
		"too large":               edit(`/webhook`, `/`+strings.Repeat("a", verify.MaxLeafSize)),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := verify.ParseLeaf([]byte(s))
			wantError(t, err, verify.ErrLeafFormat)
		})
	}
	_, err = verify.ParseLeaf([]byte(edit(`"kind":"attempt"`, `"kind":"mystery"`)))
	wantError(t, err, verify.ErrUnknownKind)
}

func TestEndpointURLGrammar(t *testing.T) {
	t.Parallel()
	l := testlog.New(1).Leaf(1)
	for url, ok := range map[string]bool{
		"https://example.com": true, "https://example.com/": true, "http://127.0.0.1:8080/a/b@c": true,
		"https://[2001:db8::1]:8443/x": true, "https://xn--mnchen-3ya.example/%C3%BC": true, "http://example.com:443/": true,
		"": false, "example.com": false, "ftp://example.com": false, "HTTPS://example.com": false, "https://": false,
		"https:///path": false, "https://Example.com": false, "https://user@example.com": false, "https://u:p@example.com": false,
		"https://example.com?x": false, "https://example.com/#f": false, "https://example.com:443/": false, "http://example.com:80": false,
		"https://example.com:": false, "https://example.com:0": false, "https://example.com:08443": false, "https://example.com:65536": false,
		"https://münchen.example": false, "https://[::1": false, "https://[::1%25eth0]": false, "https://[1.2.3.4]": false,
		"https://exa mple.com": false, "https://example.com/\u202e": false, "https://.example.com": false, `https://example.com\@evil.com`: false,
	} {
		l.EndpointURL = url
		if _, err := l.Bytes(); (err == nil) != ok {
			t.Errorf("%q: %v", url, err)
		}
	}
}

func TestAcceptedLeavesBelongToNoDelivery(t *testing.T) {
	t.Parallel()
	l := testlog.New(1).Leaf(1)
	l.Kind, l.Outcome, l.AttemptNumber = verify.KindAccepted, "", 0
	l.AttemptID, l.DeliveryID, l.DestinationID, l.EndpointURL, l.URLHash, l.HeadersHash = "", "", "", "", "", ""
	l.ResponseStatus, l.ResponseHash, l.ResponseSize = 0, "", 0
	b, err := l.Bytes()
	must(t, err)
	_, err = verify.ParseLeaf(b)
	must(t, err)
}

func FuzzParseLeaf(f *testing.F) {
	b, err := testlog.New(1).Leaf(1).Bytes()
	must(f, err)
	f.Add(b)
	f.Add([]byte(`{"v":1}`))
	f.Add([]byte(fmt.Sprintf("%s ", b)))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := verify.ParseLeaf(b)
		if err != nil {
			return
		}
		again, err := l.Bytes()
		must(t, err)
		if !bytes.Equal(again, b) {
			t.Fatalf("%q is read as the leaf %q", b, again)
		}
	})
}
