package worker

import (
	"bytes"
	"log"
	"regexp"

	"go.uber.org/zap"
)

// DropStandardLog keeps what libraries print through the standard log package out of every log: net/http prints there what a
// receiver sends on a connection that nobody has asked anything on, and that is content. One line is written in its place, with
// the line of source code that printed it, which says what it was about, and how many bytes were left out. It holds for the whole
// process; when it is called again, the last logger gets the lines.
func DropStandardLog(to *zap.Logger) {
	log.SetPrefix("")
	log.SetFlags(log.Lshortfile) // "transport.go:2482: ", before anything that could have come from outside
	log.SetOutput(dropped{to.Named("library").WithOptions(zap.WithCaller(false))})
}

// sourceLine is what log.Lshortfile puts before a line. Who writes past it has no source, and whatever it wrote is content.
var sourceLine = regexp.MustCompile(`^[\w.-]+\.go:\d+$`)

// dropped is where the standard log writes, one line a call.
type dropped struct{ log *zap.Logger }

func (d dropped) Write(line []byte) (int, error) {
	source, content, _ := bytes.Cut(line, []byte(": "))
	if !sourceLine.Match(source) {
		source, content = nil, line
	}
	d.log.Warn("a library had something to say, which may hold content and is left out",
		zap.String("source", string(source)), zap.Int("bytes", len(bytes.TrimSuffix(content, []byte("\n")))))
	return len(line), nil
}
