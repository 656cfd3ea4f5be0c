# The end of a Linux domain's init: serves the lab's commands on its console.
#
# Request, one line:  run ID BASE64   or   get ID
# Answer:             @@begin ID / the output / an empty line / @@end ID STATUS SHA256
stty raw -echo <&1

answer() {
    sum=$(sha256sum </tmp/$1.out)
    echo "@@begin $1"
    cat "/tmp/$1.out"
    echo
    echo "@@end $1 $(cat /tmp/$1.rc) ${sum%% *}"
}

# Two answers must not mix on the console.
answer_alone() {
    until mkdir /tmp/answering 2>/dev/null; do usleep 20000; done
    answer "$1"
    rmdir /tmp/answering
}

run() {
    (eval "$2") </dev/null >/tmp/$1.out 2>&1
    echo $? >/tmp/$1.rc
    answer_alone "$1"
}

echo "@@ready $(uname -r)"
while read -r verb id text; do
    case $verb in
    run) run "$id" "$(echo "$text" | base64 -d)" & ;;
    get) answer_alone "$id" & ;;
    esac
done
echo "@@console closed"
sleep 1000000
