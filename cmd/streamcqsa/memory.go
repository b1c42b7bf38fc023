package main

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// hostMemory is what this process may use of the machine's memory.
type hostMemory struct {
	limit     int64 // the machine's, or the smallest limit on the process's cgroups or job
	available int64 // of limit, not in use; page cache counts as free
	from      string
}

// readHostMemory asks the kernel, the process's cgroups (v1 and v2, and all
// that contain them) and the batch system, and takes the tightest answer.
func readHostMemory() hostMemory {
	info := meminfo()
	m := hostMemory{limit: info["MemTotal"], available: info["MemAvailable"], from: "the machine"}
	for _, g := range memoryCgroups() {
		limit, used, ok := g.read()
		if ok && limit < m.limit {
			m.limit, m.from = limit, "cgroup "+g.dir
		}
		if ok {
			m.available = min(m.available, max(0, limit-used))
		}
	}
	if mb, err := strconv.ParseInt(os.Getenv("SLURM_MEM_PER_NODE"), 10, 64); err == nil && mb > 0 && mb<<20 < m.limit {
		m.limit, m.from = mb<<20, "SLURM_MEM_PER_NODE"
		m.available = min(m.available, m.limit)
	}
	return m
}

// meminfo reads /proc/meminfo, in bytes; it is empty where there is none.
func meminfo() map[string]int64 { return procTable("/proc/meminfo") }

// procTable reads lines like "MemTotal:  24 kB", in bytes.
func procTable(path string) map[string]int64 {
	table := make(map[string]int64)
	f, err := os.Open(path)
	if err != nil {
		return table
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		name, rest, ok := strings.Cut(s.Text(), ":")
		fields := strings.Fields(rest)
		if !ok || len(fields) == 0 {
			continue
		}
		if n, err := strconv.ParseInt(fields[0], 10, 64); err == nil {
			if len(fields) > 1 && fields[1] == "kB" {
				n <<= 10
			}
			table[name] = n
		}
	}
	return table
}

// cgroup is one directory of the memory controller.
type cgroup struct {
	dir                 string
	limitFile, statFile string
	anon                []string // names in statFile that count as used
}

// memoryCgroups lists the process's memory cgroups, innermost first.
func memoryCgroups() []cgroup {
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil
	}
	var list []cgroup
	for line := range strings.Lines(string(data)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		root, g := "", cgroup{}
		switch {
		case f[1] == "":
			root = "/sys/fs/cgroup"
			g = cgroup{limitFile: "memory.max", statFile: "memory.stat", anon: []string{"anon", "shmem", "slab_unreclaimable"}}
		case strings.Contains(","+f[1]+",", ",memory,"):
			root = "/sys/fs/cgroup/memory"
			g = cgroup{limitFile: "memory.limit_in_bytes", statFile: "memory.stat", anon: []string{"total_rss", "total_shmem"}}
		default:
			continue
		}
		for p := f[2]; ; p = filepath.Dir(p) {
			g.dir = filepath.Join(root, p)
			list = append(list, g)
			if p == "/" || p == "." {
				break
			}
		}
	}
	return list
}

func (g cgroup) read() (limit, used int64, ok bool) {
	b, err := os.ReadFile(filepath.Join(g.dir, g.limitFile))
	if err != nil {
		return 0, 0, false
	}
	limit, err = strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil || limit >= 1<<60 { // "max", and v1's way to say so
		return 0, 0, false
	}
	stat, err := os.ReadFile(filepath.Join(g.dir, g.statFile))
	if err != nil {
		return limit, 0, true
	}
	for line := range strings.Lines(string(stat)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		for _, a := range g.anon {
			if name == a {
				n, _ := strconv.ParseInt(value, 10, 64)
				used += n
			}
		}
	}
	return limit, used, true
}

// resolve turns a size into bytes. auto is half of what is available.
func (s size) resolve(m hostMemory) int64 {
	switch {
	case s.auto:
		return m.available / 2
	case s.percent > 0:
		return int64(float64(m.limit) * s.percent / 100)
	}
	return s.bytes
}

// besideBudget is what the process takes beside its budget, but in rare cases.
const besideBudget = 16 << 20

// mayHold says why this process may not hold that much; nil if it may. Beyond the limit
// of a control group the kernel would kill it, when much may be done already.
func (m hostMemory) mayHold(budget int64) error {
	if m.limit <= 0 || budget+besideBudget <= m.limit { // or nobody knows
		return nil
	}
	return classify(errNoFit, fmt.Errorf("the run would hold %d bytes and some %d beside, but the memory limit of %s is %d bytes: want a smaller --mem-budget, or a higher limit",
		budget, besideBudget, m.from, m.limit))
}

// anonymous is the process's anonymous memory now, by the kernel's account.
func anonymous() int64 { return procTable("/proc/self/status")["RssAnon"] }
