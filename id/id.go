// Package id names things. In Postgres an ID is a UUIDv7 (RFC 9562), so that rows sort by the time they were made;
// wherever a person or another system sees one it is a TypeID, whose prefix says what it names: "evt_01h455vb4pex5vsknk084sn02q".
package id

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/google/uuid"
	"go.jetify.com/typeid"
)

// Kind is the prefix of a TypeID.
type Kind string

// The kinds of things that Kapsel names.
const (
	Tenant      Kind = "ten"
	Endpoint    Kind = "ep"
	Destination Kind = "dst"
	Event       Kind = "evt"
	Delivery    Kind = "dlv"
	Attempt     Kind = "da"
	Log         Kind = "log"
	APIKey      Kind = "key"
	SigningKey  Kind = "whk"
	Worker      Kind = "wrk"
	Claim       Kind = "clm"
	Secret      Kind = "sec"
	Job         Kind = "job"
)

// New makes a UUIDv7 of the present millisecond.
func New() uuid.UUID { return uuid.Must(uuid.NewV7()) }

// Format writes u as a TypeID of kind k.
func (k Kind) Format(u uuid.UUID) string {
	t, err := typeid.FromUUIDBytesWithPrefix(string(k), u[:])
	if err != nil { // only a malformed prefix or length can fail, and both are constants
		panic(err)
	}
	return t.String()
}

// Parse reads a TypeID of kind k. A UUID of another kind is an error, so one thing can't be taken for another.
func (k Kind) Parse(s string) (uuid.UUID, error) {
	t, err := typeid.FromString(s)
	if err != nil || t.Prefix() != string(k) {
		return uuid.Nil, fmt.Errorf("%.80q is not an ID of the form %s_ and 26 digits and lower-case letters", s, k)
	}
	return uuid.FromBytes(t.UUIDBytes())
}

// Time returns the 48-bit Unix-millisecond timestamp of a UUIDv7.
func Time(u uuid.UUID) time.Time {
	var b [8]byte
	copy(b[2:], u[:6])
	return time.UnixMilli(int64(binary.BigEndian.Uint64(b[:]))).UTC()
}

// At makes a UUIDv7 that carries the timestamp of parent and fresh randomness, so that rows which belong together fall
// into the same daily partition.
func At(parent uuid.UUID) uuid.UUID {
	u := uuid.Must(uuid.NewRandom())
	return stamp(u, parent)
}

// Decision is the attempt number under which the decision to send no (more) requests is recorded: one for each
// delivery, so the primary key of attempts makes a second terminal record impossible.
const Decision = 0

// AttemptOf derives the ID of attempt number of a delivery (or of its Decision): the delivery's timestamp and a hash of
// (delivery, number). It is deterministic, so the primary key of attempts is the uniqueness of the attempt, and the
// attempts of a delivery are found without an index.
func AttemptOf(delivery uuid.UUID, number int) uuid.UUID {
	var n [4]byte
	binary.BigEndian.PutUint32(n[:], uint32(number))
	h := sha256.New()
	h.Write([]byte("kapsel.io/attempt-id/v1\x00"))
	h.Write(delivery[:])
	h.Write(n[:])
	var u uuid.UUID
	copy(u[:], h.Sum(nil))
	return stamp(u, delivery)
}

// stamp gives u the timestamp of parent, and the version and variant bits of a UUIDv7.
func stamp(u, parent uuid.UUID) uuid.UUID {
	copy(u[:6], parent[:6])
	u[6] = 0x70 | u[6]&0x0f
	u[8] = 0x80 | u[8]&0x3f
	return u
}
