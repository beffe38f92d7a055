package chaos

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"
)

const (
	// startTimeout is how long a process may take until it says that it has started.
	startTimeout = 90 * time.Second
	// stopTimeout is how long a process may take to end in order: what Kapsel promises.
	stopTimeout = 60 * time.Second
)

// process is a program that is started again and again.
type process struct {
	name    string
	argv    []string
	env     []string
	started string // what it writes once it serves
	output  *os.File
	// ended is told of an end that nobody asked for.
	ended func(p *process, err error)

	mu     sync.Mutex
	cmd    *exec.Cmd
	asked  bool          // the end was asked for
	done   chan struct{} // closed when it is gone
	status error         // how it ended
}

func newProcess(dir, name, started string, argv, env []string, ended func(*process, error)) (*process, error) {
	output, err := os.OpenFile(filepath.Join(dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	return &process{name: name, argv: argv, env: append(os.Environ(), env...), started: started, output: output, ended: ended}, nil
}

// start runs the program; serving is closed once it has said that it serves.
func (p *process) start() (serving <-chan struct{}, err error) {
	says := &announcement{want: []byte(p.started), out: p.output, heard: make(chan struct{})}
	p.mu.Lock()
	cmd := exec.Command(p.argv[0], p.argv[1:]...)
	p.mu.Unlock()
	cmd.Env, cmd.Stdout, cmd.Stderr = p.env, says, says
	cmd.SysProcAttr = processAttributes()
	done := make(chan struct{})
	p.mu.Lock()
	p.asked, p.done = false, done
	p.mu.Unlock()
	began := make(chan error, 1)
	go func() {
		// The kernel kills the child when the thread that started it ends: this goroutine keeps its own.
		runtime.LockOSThread()
		err := cmd.Start()
		began <- err
		if err == nil {
			p.reap(cmd, done)
		}
	}()
	if err := <-began; err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	p.mu.Lock()
	p.cmd = cmd
	p.mu.Unlock()
	return says.heard, nil
}

// runs has the process run another program from its next start on. It says whether it was that already.
func (p *process) runs(program string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.argv[0] == program {
		return true
	}
	p.argv = append([]string{program}, p.argv[1:]...)
	return false
}

func (p *process) reap(cmd *exec.Cmd, done chan struct{}) {
	err := cmd.Wait()
	p.mu.Lock()
	asked := p.asked
	p.status = err
	p.mu.Unlock()
	close(done)
	if !asked {
		p.ended(p, err)
	}
}

// run starts the program and waits until it serves.
func (p *process) run() error {
	serving, err := p.start()
	if err != nil {
		return err
	}
	select {
	case <-serving:
		return nil
	case <-p.gone():
		return fmt.Errorf("%s ended before it served (%w); see %s", p.name, p.exit(), p.output.Name())
	case <-time.After(startTimeout):
		return fmt.Errorf("%s did not serve within %s; see %s", p.name, startTimeout, p.output.Name())
	}
}

func (p *process) gone() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.done
}

func (p *process) exit() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status
}

// signal sends a signal; the program may be gone already.
func (p *process) signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return nil
	}
	if sig == syscall.SIGKILL || sig == syscall.SIGTERM {
		p.asked = true
	}
	err := p.cmd.Process.Signal(sig)
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// kill is kill -9.
func (p *process) kill() error {
	if err := p.signal(syscall.SIGKILL); err != nil {
		return err
	}
	if gone := p.gone(); gone != nil {
		<-gone
	}
	return nil
}

// errNotInOrder says that a program that got SIGTERM did not end as it promises.
var errNotInOrder = errors.New("did not end in order")

// terminate sends SIGTERM and waits for status 0.
func (p *process) terminate() error {
	if err := p.signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.gone():
		if err := p.exit(); err != nil {
			return fmt.Errorf("%s %w on SIGTERM: %w", p.name, errNotInOrder, err)
		}
		return nil
	case <-time.After(stopTimeout):
		return errors.Join(fmt.Errorf("%s %w within %s of SIGTERM", p.name, errNotInOrder, stopTimeout), p.kill())
	}
}

// announcement passes on what a program writes, and hears when it says the words.
type announcement struct {
	want  []byte
	out   *os.File
	line  []byte
	done  bool
	heard chan struct{}
}

func (a *announcement) Write(text []byte) (int, error) {
	if !a.done {
		a.line = append(a.line, text...)
		if a.done = bytes.Contains(a.line, a.want); a.done {
			a.line = nil
			close(a.heard)
		} else if end := bytes.LastIndexByte(a.line, '\n'); end >= 0 {
			a.line = append([]byte(nil), a.line[end+1:]...)
		}
	}
	return a.out.Write(text)
}
