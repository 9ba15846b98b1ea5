"""Messages that name a command or an option: how to provoke each, and what they name.

A line holds commands separated by `;`. Commands after `$` are the shell's, those after `@` are
functions of `test_remedies_work.py`, the others tltools'.
"""

from typing import NamedTuple


class Case(NamedTuple):
    """A message that can be provoked."""

    told: str
    """A piece of the message as the source has it, with options as they are typed."""
    fault: str
    """Line that ends with the message."""
    remedies: tuple[str, ...]
    """Lines that the message names; each cures the fault."""
    code: int = 1
    """Exit code of the fault; 0 for a warning or a hint."""


ONE_EPOCH = "train data --model cnn --image-size 32 --epochs 1"
SHARDS = "classify data --shard 1/2 -o a.csv; classify data --shard 2/2 -o b.csv"
MERGE = "merge a.csv b.csv"
SPLITS = (
    "$ mkdir -p splits/val/dark splits/val/bright && cp -r data splits/train"
    " && mv splits/train/dark/0.png splits/val/dark"
    " && mv splits/train/bright/1.png splits/val/bright"
)
OTHER_CNN = (
    "$ mkdir other && cp -r runs/cnn other"
    """ && sed -i 's/"fingerprint": "./&x/' other/cnn/card.json"""
)
AMBIGUOUS = (
    "$ mkdir -p x/a/dark x/a/bright x/b && mv data/dark/[0-6].png x/a/dark"
    " && mv data/bright/[1-7].png x/a/bright && mv data/dark data/bright x/b"
    " && rmdir data && mv x data"
)
VGG16 = (
    "train data --model vgg16 --weights vgg16.safetensors --epochs 1 --image-size 32 "
    "--feature-precision fp32"
)

MOVED = ONE_EPOCH.replace(" data", " x/labels.csv")
BENCH = "bench --rounds 1 --iterations 1 --batch-sizes 1 --budget 5"

NAMES = "--class-names bright,dark"
CHOOSE = f"evaluate runs/cnn s {NAMES} --target-recall 0.5 --class dark"
CHOSEN = f"sample s --num-images 60; {CHOOSE}"
SCORED = f"sample s --num-images 60; evaluate runs/cnn s {NAMES} --output scores"
OF_SCORES = "report scores/predictions.csv --output page.html"
SPLIT_SAMPLE = (
    "sample s --num-images 60; $ awk -F, -v OFS=, "
    """'{print $0, NR == 1 ? "split" : NR % 3 ? "val" : "test"}' s/sample.csv > s/new"""
    " && mv s/new s/sample.csv"
)
MIXED = (
    "sample s --num-images 60; $ awk -F, -v OFS=, 'NR > 1 {$2 = NR % 3} 1' s/sample.csv > s/3.csv"
)
MIXED_DATA = "s/3.csv --class-names red,green,blue"
THREE = (
    f"{MIXED}; "
    "train s/3.csv --model cnn --image-size 32 --epochs 1 --class-names red,green,blue"
    " --val-fraction 0.5 --run-dir three"
)
CLASSIFY_THREE = "classify data --model new/cnn/cnn.fp32.onnx"
SCORE_THREE = "evaluate three/cnn s/3.csv --class-names red,green,blue"

CASES = (
    # ------------------------------------------------------------------ nothing made yet
    Case(
        "no runs in {}/: train one with tltools train, or give",
        "$ mv runs kept && rm -r exports; export",
        (f"{ONE_EPOCH}; export", "export kept/cnn"),
    ),
    Case(
        "tltools train --resume {}",
        "$ rm runs/cnn/card.json; export",
        ("train --resume runs/cnn; export",),
    ),
    Case(
        "no runs in {}/: train one with tltools train",
        "$ rm -r runs; runs",
        (f"{ONE_EPOCH}; runs",),
    ),
    Case(
        "no exports in {}/: create some with tltools export, or give",
        "$ mv exports kept; serve --port 0",
        ("export; classify data", "classify data --model kept/cnn/cnn.fp32.onnx"),
    ),
    Case(
        "no ONNX export with a validation accuracy",
        "$ mv exports/cnn/cnn.fp32.onnx kept.onnx; classify data",
        ("export; classify data", "classify data --model kept.onnx"),
    ),
    Case(
        "{} {}; name an export, or create one with tltools export",
        "$ mv exports kept; classify data --model exports/cnn/cnn.fp32.onnx",
        (
            "classify data --model kept/cnn/cnn.fp32.onnx",
            "export; classify data --model exports/cnn/cnn.fp32.onnx",
        ),
    ),
    Case(
        "{} is a run that has no export; create one with tltools export {}",
        "$ rm -r exports; classify data --model runs/cnn",
        ("export runs/cnn; classify data --model exports/cnn/cnn.fp32.onnx",),
    ),
    Case(
        "export it with tltools export {}, then classify images",
        "classify runs/cnn",
        ("export runs/cnn; classify data",),
    ),
    Case(
        "{} does not exist: no runs in {}/; train one",
        "$ rm -r runs exports; evaluate cnn data",
        (f"{ONE_EPOCH}; evaluate cnn data",),
    ),
    Case(
        "; train one with tltools train, and export it",
        "$ rm -r runs exports; classify data --model cnn",
        (f"{ONE_EPOCH}; export; classify data --model cnn",),
    ),
    Case(
        "the network is chosen with --model",
        "train cnn data --image-size 32 --epochs 1",
        ("train data --image-size 32 --epochs 1 --model cnn",),
        2,
    ),
    Case(
        "{} is not a model; labeled images go to --data",
        f"{BENCH} runs/cnn data",
        (f"{BENCH} runs/cnn --data data",),
        2,
    ),
    Case(
        "correct the path in --weights",
        VGG16.replace("vgg16.safetensors", "vgg61.safetensors"),
        (VGG16,),
    ),
    Case(
        "{} is not a run: it has no {}; create a run",
        "$ mkdir runs/other; export runs/other",
        (f"{ONE_EPOCH}; export",),
    ),
    Case(
        "tltools train --resume {}",
        "$ mkdir new new/cnn && mv runs/cnn/plan.json runs/cnn/split.csv new/cnn; export new/cnn",
        ("train --resume new/cnn; export new/cnn --output other",),
    ),
    Case(
        "no usable run in {}/: {}; train a new one with tltools train, or give",
        "$ cp -r runs kept && echo x > runs/cnn/card.json; export",
        (f"{ONE_EPOCH}; export", "export kept/cnn"),
    ),
    Case(
        "delete that file, and tltools train --resume writes it anew",
        "$ echo x > runs/cnn/card.json; train --resume",
        ("$ rm runs/cnn/card.json; train --resume", ONE_EPOCH),
    ),
    Case(
        "has a probability that is not between 0 and 1; run tltools evaluate",
        f"{SCORED}; $ sed -i '2s/,[01][.][0-9]*,,/,7.5,,/' scores/predictions.csv; {OF_SCORES}",
        (f"{SCORED}; {OF_SCORES}",),
    ),
    Case(
        "cannot be read: {}; run tltools evaluate again",
        f"{SCORED}; $ sed -i '2s/,[a-z]*$/,grey/' scores/predictions.csv; {OF_SCORES}",
        (f"{SCORED}; {OF_SCORES}",),
    ),
    Case(
        "nothing to report here",
        "$ mv runs kept && rm -r exports; report",
        (f"{ONE_EPOCH}; report", "report kept/cnn"),
    ),
    # ------------------------------------------------------------------ classify: its output
    Case(
        "{} exists; replace it with --overwrite, or write elsewhere",
        "classify data; classify data",
        ("classify data --overwrite", "classify data --output other.csv"),
        2,
    ),
    Case(
        "{} is shard {} of a job, which tltools merge needs",
        "classify data --shard 1/2 -o a.csv; classify data --shard 2/2 -o a.csv",
        ("classify data --shard 2/2 -o b.csv; merge a.csv b.csv",),
        2,
    ),
    Case(
        "--sheet {}: a contact sheet is a PNG",
        "inspect data --sheet data.csv",
        ("inspect data --sheet data.png",),
        2,
    ),
    Case(
        "{} is not complete; to finish it, run tltools classify with its inputs again",
        "$ echo path,label > rows.csv.part; report rows.csv",
        ("$ rm rows.csv.part; classify data --output rows.csv",),
        1,
    ),
    Case(
        "{} exists, and tltools did not write it; move it away",
        "$ echo mine > predictions.csv.part.json; classify data",
        ("$ mv predictions.csv.part.json mine; classify data", "classify data --output other.csv"),
        2,
    ),
    Case(
        "another job is writing {}; wait for it, or write elsewhere",
        "@locked; classify data",
        ("classify data --output other.csv", "@unlocked; classify data"),
        2,
    ),
    Case(
        "Run the same job again, without --overwrite, to resume",
        "@stopped",
        ("classify data --model exports/cnn/cnn.fp32.onnx --batch-size 2",),
        0,
    ),
    Case(
        "start over with --overwrite, or write elsewhere",
        "@stopped; classify data --batch-size 3",
        (
            "classify data --batch-size 3 --overwrite",
            "classify data --batch-size 3 --output other.csv",
        ),
        2,
    ),
    *(
        Case(
            f"has a different {option} than",
            f"{SHARDS} {option} {value}; {MERGE}",
            (f"classify data --shard 2/2 -o b.csv --overwrite; {MERGE}",),
        )
        for option, value in (
            ("--batch-size", "3"),
            ("--spreadsheet", ""),
            ("--min-confidence", "0.9"),
            ("--unknown", "90"),
        )
    ),
    Case(
        "cannot use the ledger {}: {}",
        "classify data --changed-only --cache-dir one.png",
        ("classify data --changed-only --cache-dir caches",),
    ),
    Case(
        "--shard keeps a record beside its output",
        "classify data --shard 1/2 --output -",
        ("classify data --shard 1/2 --output a.csv",),
        2,
    ),
    Case("--shard takes K/N", "classify data --shard 5/4", ("classify data --shard 4/4",), 2),
    Case(
        "the model has a class named {}, the label that --min-confidence assigns; ",
        "classify data --model odd.onnx --min-confidence 0.5",
        ("classify data --model odd.onnx",),
        2,
    ),
    Case(
        "this export of {} has no output {}, which --unknown needs",
        "classify data --model odd.onnx --unknown 99",
        (
            "export runs/cnn; classify data --model exports/cnn/cnn.fp32.onnx --unknown 99",
            "classify data --model odd.onnx",
        ),
    ),
    Case(
        "--unknown must be a percentile of at least 1 and below 100",
        "classify data --unknown 0.99",
        ("classify data --unknown 99",),
        2,
    ),
    Case(
        "--errors-to and --output are both",
        "classify data --output a.csv --errors-to a.csv",
        ("classify data --output a.csv --errors-to b.csv",),
        2,
    ),
    Case(
        "--errors-to {} is where the rows of {} are",
        "classify data --output a.csv --errors-to a.csv.part",
        ("classify data --output a.csv --errors-to b.csv",),
        2,
    ),
    Case(
        "--image-timeout must be a number above 0",
        "classify data --image-timeout inf",
        ("classify data --image-timeout 5",),
        2,
    ),
    Case(
        "--output {} lies in the folder for the sorted images",
        "classify data --output sorted/a.csv --sort-into sorted",
        ("classify data --output a.csv --sort-into sorted",),
        2,
    ),
    Case(
        "{} was begun with --sort-by {}; use that",
        "@sorting_stopped; classify data --sort-into sorted --sort-by move",
        (
            "classify data --sort-into sorted --sort-by copy",
            "classify sorted --undo-sort; classify data --sort-into sorted --sort-by move",
        ),
        2,
    ),
    Case(
        "--errors-to {} is a folder; name a file",
        "classify data --errors-to data",
        ("classify data --errors-to data.csv",),
        2,
    ),
    Case(
        "--output {}: cannot write to web servers",
        "classify data --output https://localhost/a.csv",
        ("classify data --output a.csv",),
        2,
    ),
    Case(
        "--output {} has no spreadsheet mode",
        "classify data --output a.parquet --spreadsheet",
        ("classify data --output a.csv --spreadsheet", "classify data --output a.parquet"),
        2,
    ),
    Case(
        "--output {} is a folder; name a file in it",
        "$ mkdir a.csv; classify data --output a.csv",
        ("classify data --output a.csv/b.csv",),
        2,
    ),
    Case(
        "--json and --output - would both write",
        "classify data --json --output -",
        ("classify data --json --output a.csv",),
        2,
    ),
    Case(
        "--report needs a local output file",
        "classify data --output - --report a.html",
        ("classify data --output a.csv --report a.html",),
        2,
    ),
    Case(
        "--cache-dir works only with --changed-only",
        "classify data --cache-dir caches",
        ("classify data --cache-dir caches --changed-only",),
        2,
    ),
    Case(
        "--strict: not every image was classified",
        "classify data bad.jpg --strict",
        ("classify data --strict --overwrite",),
    ),
    Case(
        "--quiet and --verbose contradict",
        "classify data --quiet --verbose",
        ("classify data --quiet", "classify data --verbose"),
        2,
    ),
    Case(
        "{} is for --engine ray; add --engine ray",
        "classify data --part-size 64",
        ("classify data",),
        2,
    ),
    Case(
        "--weights applies to none of the models to train; leave it out",
        f"{ONE_EPOCH} --weights vgg16.safetensors",
        (ONE_EPOCH,),
        code=2,
    ),
    Case(
        "{} is for --engine local: {}; leave it out",
        "classify data --engine ray --threads 1",
        ("classify data --threads 1",),
        2,
    ),
    # ------------------------------------------------------------------ classify: sorting
    Case(
        "--sort-into needs a predictions file here",
        "classify data --output - --sort-into sorted",
        ("classify data --output a.csv --sort-into sorted",),
        2,
    ),
    Case(
        "--sort-into needs images in folders of this machine",
        "classify data.tar --sort-into sorted",
        ("$ mkdir x && tar xf data.tar -C x; classify x/data --sort-into sorted",),
        2,
    ),
    Case(
        "{} holds the sorted images of {}; choose another folder",
        "classify data --sort-into sorted; classify data -o b.csv --sort-into sorted",
        (
            "classify data -o b.csv --sort-into other",
            "classify sorted --undo-sort; classify data -o b.csv --sort-into sorted",
        ),
        2,
    ),
    Case(
        "{} holds the images of an earlier {}",
        "classify data --sort-into sorted; $ cp one.png data/dark/new.png; "
        "classify data --overwrite --sort-into sorted",
        (
            "classify data --overwrite --sort-into other",
            "classify sorted --undo-sort; classify data --overwrite --sort-into sorted",
        ),
        2,
    ),
    Case(
        "{} holds no sorted images",
        "classify data --undo-sort",
        ("classify data --sort-into sorted; classify sorted --undo-sort",),
    ),
    Case(
        "--sort-into sorts the images of a whole job here",
        "classify data --sort-into sorted --shard 1/2",
        ("classify data --sort-into sorted",),
        2,
    ),
    Case(
        "--undo-sort takes no other options",
        "classify data --sort-into sorted; classify sorted --undo-sort --strict",
        ("classify sorted --undo-sort",),
        2,
    ),
    Case(
        "--sort-by works only with --sort-into",
        "classify data --sort-by move",
        ("classify data --sort-by move --sort-into sorted",),
        2,
    ),
    Case(
        "To undo: tltools classify {} --undo-sort",
        "classify data --sort-into sorted",
        ("classify sorted --undo-sort",),
        0,
    ),
    # ------------------------------------------------------------------ merge
    Case(
        "{} is one of the shards",
        f"{SHARDS}; {MERGE} -o a.csv",
        (f"{MERGE} -o all.csv",),
        2,
    ),
    Case(
        "--output {} does not have the format of the shards",
        f"{SHARDS}; {MERGE} -o all.jsonl",
        (f"{MERGE} -o all.csv",),
        2,
    ),
    Case(
        "a merge cannot write to standard output",
        f"{SHARDS}; {MERGE} -o -",
        (f"{MERGE} -o all.csv",),
        2,
    ),
    Case(
        "shard {}/{}{} is missing",
        f"{SHARDS}; merge a.csv",
        (MERGE, "classify data --shard 2/2 -o c.csv; merge a.csv c.csv"),
    ),
    Case(
        "recreate it with tltools classify, --shard {} and --overwrite",
        f"{SHARDS}; $ echo >> a.csv; {MERGE}",
        (f"classify data --shard 1/2 -o a.csv --overwrite; {MERGE}",),
    ),
    Case(
        "{} is not the record of a shard ({})",
        f"{SHARDS}; $ echo >  a.csv.shard.json; {MERGE}",
        (f"classify data --shard 1/2 -o a.csv --overwrite; {MERGE}",),
    ),
    # ------------------------------------------------------------------ train: data
    Case(
        "{} has its own split",
        f"{SPLITS}; train splits --model cnn --image-size 32 --epochs 1 --split default",
        ("train splits --model cnn --image-size 32 --epochs 1",),
        2,
    ),
    Case(
        "--val-fraction must be between 0 and 1",
        f"{ONE_EPOCH} --val-fraction 20",
        (f"{ONE_EPOCH} --val-fraction 0.2",),
        2,
    ),
    Case(
        "the article's validation set is",
        f"{ONE_EPOCH} --split article --val-fraction 0.2",
        (f"{ONE_EPOCH} --split article", f"{ONE_EPOCH} --split default --val-fraction 0.2"),
        2,
    ),
    Case(
        "the article's split cannot divide",
        f"$ find data/dark -type f | tail -n +2 | xargs rm; {ONE_EPOCH} --split article",
        (f"{ONE_EPOCH} --split default",),
    ),
    Case(
        "--class-names has {} for {}",
        f"{ONE_EPOCH} --class-names a,b,c",
        (f"{ONE_EPOCH} --class-names a,b",),
        2,
    ),
    Case(
        "--class-names must be unique",
        f"{ONE_EPOCH} --class-names a,a",
        (f"{ONE_EPOCH} --class-names a,b",),
        2,
    ),
    Case(
        "fix the data, or skip them with --skip-bad",
        f"$ cp bad.jpg data/dark; {ONE_EPOCH}",
        (f"{ONE_EPOCH} --skip-bad", f"$ rm data/dark/bad.jpg; {ONE_EPOCH}"),
    ),
    Case(
        "fix the data, or train with --skip-bad",
        "$ cp bad.jpg data/dark; inspect data",
        (f"{ONE_EPOCH} --skip-bad",),
    ),
    Case(
        "no image is left; check --images",
        f"$ mkdir x && mv labels.csv x; {MOVED}",
        (f"{MOVED} --images .",),
    ),
    Case(
        "--class-level {} takes those as classes",
        "$ mkdir -p up/more/dark && mv data up"
        " && mv up/data/dark/[0-6].png up/more/dark; inspect up",
        ("inspect up --class-level 2",),
        0,
    ),
    Case("--delete is an option: {}", "runs delete cnn", ("runs --delete cnn --yes",), 2),
    Case(
        "{} has no images in folders at --class-level",
        "inspect data --class-level 3",
        ("inspect data --class-level 1",),
        2,
    ),
    Case(
        "--class-level is for folders",
        "inspect labels.csv --class-level 1",
        ("inspect labels.csv",),
        2,
    ),
    Case(
        "which are named like splits, and {}, which are not",
        "$ mv data/dark data/train && mkdir data/val && mv data/train/1*.png data/val; "
        + ONE_EPOCH,
        (f"{ONE_EPOCH} --class-level 1",),
    ),
    Case(
        "which look like parts of one set",
        "$ mv data/dark data/part1 && mv data/bright data/part2; inspect data",
        (
            "inspect data --class-level 1",
            "$ sed -i -e s#/dark#/part1# -e s#/bright#/part2# labels.csv; inspect labels.csv",
        ),
    ),
    Case(
        "choose with --class-level 1 (the upper folders are classes)",
        f"{AMBIGUOUS}; {ONE_EPOCH}",
        (f"{ONE_EPOCH} --class-level 1", f"{ONE_EPOCH} --class-level 2"),
    ),
    Case(
        "{} {}: {}; name one column with --label-column",
        "$ sed -i -e 's/$/,x/' -e '1s/.*/image,label1,label2/' labels.csv; inspect labels.csv",
        ("inspect labels.csv --label-column label1",),
    ),
    Case(
        "{} has no label column besides",
        "$ sed -e 's/,.*/,train/' -e '1s/.*/image,split/' labels.csv > l.csv; inspect l.csv",
        ("inspect labels.csv",),
    ),
    Case(
        "{} is not a folder: name the folder of the images with --images",
        "inspect labels.csv --images one.png",
        ("inspect labels.csv --images .",),
    ),
    Case(
        "{} contains no CSV: leave out --images",
        "inspect data --images data",
        ("inspect data", "inspect labels.csv --images ."),
        2,
    ),
    # ------------------------------------------------------------------ train: settings
    Case("--lr must be positive", f"{ONE_EPOCH} --lr 0", (f"{ONE_EPOCH} --lr 0.1",), 2),
    Case("--seed must be between", f"{ONE_EPOCH} --seed -1", (f"{ONE_EPOCH} --seed 1",), 2),
    Case(
        "--model {} has no --head {}",
        f"{ONE_EPOCH} --head pooled",
        (ONE_EPOCH,),
        2,
    ),
    Case("--fine-tune works only with --model", f"{ONE_EPOCH} --fine-tune all", (ONE_EPOCH,), 2),
    Case(
        "--fine-tune {} needs a positive --backbone-lr",
        f"{VGG16} --fine-tune last-block --backbone-lr 0",
        (VGG16,),
        2,
    ),
    Case("`{}=` works only with --fine-tune last-block", f"{VGG16} --backbone-lr 0.1", (VGG16,), 2),
    Case(
        "--feature-precision works only with --model",
        f"{ONE_EPOCH} --feature-precision fp32",
        (ONE_EPOCH, VGG16),
        2,
    ),
    Case(
        "--feature-precision fp16 needs a local GPU",
        VGG16.replace("precision fp32", "precision fp16"),
        (VGG16,),
        2,
    ),
    Case(
        "--model {} has no --recipe",
        "train data --model resnet18 --recipe article",
        (f"{ONE_EPOCH} --recipe default",),
        2,
    ),
    Case(
        "--recipe {} trains only a head",
        f"{VGG16} --recipe article --fine-tune last-block",
        (f"{VGG16} --recipe article",),
        2,
    ),
    Case("--folds must be at least 2", f"{ONE_EPOCH} --folds 1", (f"{ONE_EPOCH} --folds 2",), 2),
    Case(
        "all of them are in {}; add --images",
        "$ sed 's|data/||' labels.csv > l.csv; train l.csv --model cnn --image-size 32 --epochs 1",
        ("train l.csv --images data --model cnn --image-size 32 --epochs 1",),
    ),
    Case(
        "cross-validation measures it on all images: {}--folds {}",
        ONE_EPOCH,
        (f"{ONE_EPOCH} --folds 5",),
        0,
    ),
    Case(
        "cross-validation measures it on all images: {}--folds {}",
        ONE_EPOCH.replace("epochs 1", "epochs 5 --val-fraction 0.5"),
        (f"{ONE_EPOCH} --folds 5",),
        0,
    ),
    Case(
        "cross-validation measures it on all images: {}--folds {}",
        "inspect data --json",
        (f"{ONE_EPOCH} --folds 5",),
        0,
    ),
    Case("use --folds {} or fewer", f"{ONE_EPOCH} --folds 9", (f"{ONE_EPOCH} --folds 8",)),
    Case(
        "{} needs images of at least {} pixels",
        VGG16.replace("image-size 32", "image-size 16"),
        (VGG16,),
        1,
    ),
    Case(
        "features cannot be cached",
        f"{VGG16} --cache-dir one.png",
        (f"{VGG16} --cache-dir caches",),
    ),
    Case(
        "provide {}'s weights with --weights FILE",
        "@offline; train data --model vgg16 --epochs 1 --image-size 32 --feature-precision fp32",
        (VGG16,),
    ),
    Case(
        "unknown model {};{} tltools models --all lists",
        "train data --model resnet999 --epochs 1",
        ("models --all",),
        2,
    ),
    Case(
        "{}; to extend a finished run, increase --epochs ({})",
        "train --model cnn --resume",
        ("train --model cnn --resume --epochs 2",),
    ),
    Case(
        "{}; train one with tltools train",
        "train --resume --run-dir new",
        (f"{ONE_EPOCH} --run-dir new",),
    ),
    Case(
        "tltools train --resume {} --epochs {}",
        "$ cp -r runs/cnn runs/other; train --resume --epochs 2",
        ("train --resume runs/cnn --epochs 2", "train --resume runs/other --epochs 2"),
        2,
    ),
    Case(
        "tltools runs {} --images FOLDER",
        "$ mkdir new && mv data new/photos && sed -i 's|^[^,]*/data/|/gone/data/|' runs/cnn/*.csv; "
        "train --resume cnn --epochs 2",
        ("runs runs/cnn --images new; train --resume cnn --epochs 2",),
    ),
    Case("--images needs the names of runs", "runs --images data", ("runs cnn --images data",), 2),
    Case(
        "--images notes where images are; leave it out, or --delete",
        "runs cnn --delete --images data",
        ("runs cnn --images data", "runs cnn --delete --yes"),
        2,
    ),
    Case(
        "say where it is now with --weights FILE",
        f"$ cp vgg16.safetensors own.safetensors; {VGG16.replace('vgg16.s', 'own.s')}; "
        "$ mv own.safetensors moved.safetensors; train --resume vgg16 --epochs 2",
        ("train --resume vgg16 --epochs 2 --weights moved.safetensors",),
    ),
    Case(
        "nothing to resume: {} is finished, with {}; to extend it, increase --epochs",
        "train --resume cnn",
        ("train --resume cnn --epochs 2",),
    ),
    Case(
        "{} is not in {}; omit --run-dir",
        "$ mkdir new && cp -r runs/cnn new; train --resume runs/cnn --run-dir new --epochs 2",
        ("train --resume runs/cnn --epochs 2", "train --resume new/cnn --run-dir new --epochs 2"),
        2,
    ),
    Case(
        "{}: the cross-validation of {} is removed",
        f"{ONE_EPOCH} --folds 2; train --resume runs/cnn-2 --epochs 2",
        (f"{ONE_EPOCH} --folds 2",),
        0,
    ),
    Case(
        "{} can be resumed only with its original settings",
        "train --model cnn --resume --epochs 2 --lr 0.5",
        ("train --model cnn --resume --epochs 2", f"{ONE_EPOCH} --lr 0.5"),
        2,
    ),
    Case(
        "--engine ray computes frozen features, and", f"{ONE_EPOCH} --engine ray", (ONE_EPOCH,), 2
    ),
    Case(
        "Next: tltools export{}, or tltools report{} to see",
        ONE_EPOCH,
        ("export", "report"),
        0,
    ),
    Case(
        "Next: tltools export{}, or tltools report{} to see",
        f"{ONE_EPOCH} --run-dir r3",
        ("$ rm -r runs exports; export r3/cnn", "$ rm -r runs; report r3/cnn"),
        0,
    ),
    # ------------------------------------------------------------------ evaluate
    Case(
        "the model was trained on {} of these",
        "evaluate runs/cnn data",
        ("evaluate runs/cnn data --exclude-train",),
        0,
    ),
    Case(
        "--exclude-train needs the run of",
        "$ mv runs kept; evaluate exports/cnn/cnn.fp32.onnx data --exclude-train",
        (
            "$ mv kept runs; evaluate exports/cnn/cnn.fp32.onnx data --exclude-train",
            "evaluate kept/cnn data --exclude-train",
        ),
        2,
    ),
    Case(
        "--mistakes needs a folder to write to",
        "evaluate runs/cnn data --mistakes",
        ("evaluate runs/cnn data --mistakes --output x",),
        2,
    ),
    Case(
        "the model does not know {}{}: the data has",
        "evaluate runs/cnn data --class-names light,dark",
        ("evaluate runs/cnn data --class-names bright,dark",),
    ),
    # ------------------------------------------------------------------ export
    Case(
        "--layout {} needs {} exports; leave out --format",
        "export --layout triton --format pt2",
        ("export --layout triton",),
        2,
    ),
    Case(
        "{} and {} are both named {} and would be written",
        "$ mkdir other && cp -r runs/cnn other; export runs/cnn other/cnn",
        ("export runs/cnn -o a; export other/cnn -o b",),
        2,
    ),
    Case(
        "{} is an export of another run named",
        f"{OTHER_CNN}; export runs/cnn; export other/cnn",
        ("export other/cnn -o elsewhere", "$ rm exports/cnn/cnn.fp32.onnx; export other/cnn"),
    ),
    Case("--opset {} is not supported", "export --opset 3", ("export --opset 17",), 2),
    Case(
        "--opset is for --format onnx",
        "export --opset 18 --format pt2",
        ("export --format pt2", "export --opset 18 --format onnx"),
        2,
    ),
    Case(
        "{} supports only {}; --precision {} needs",
        "export --precision int8 --format torchscript",
        ("export --precision int8 --format onnx",),
        2,
    ),
    Case(
        "runs on GPUs and must be verified on one",
        "export --precision fp16 --format pt2",
        ("export --precision fp16 --format onnx",),
    ),
    Case(
        "--layout {} needs an {} export, and {} is not one",
        "export --layout triton exports/cnn/cnn.fp32.pt",
        ("export --format onnx runs/cnn; export --layout triton exports/cnn/cnn.fp32.onnx",),
        2,
    ),
    Case(
        "Next: tltools classify {}, or {} to compare the files",
        "export",
        ("classify data", BENCH),
        0,
    ),
    Case(
        "Next: tltools classify {}, or {} to compare the files",
        "$ rm -r exports; export -o e3",
        (
            "classify data --model e3/cnn/cnn.fp32.onnx",
            BENCH.replace("bench", "bench e3/cnn/cnn.fp32.onnx"),
        ),
        0,
    ),
    # ------------------------------------------------------------------ thresholds
    Case(
        "Next: {}, then tltools classify FOLDER --model {} --threshold auto",
        f"{CHOSEN}; {CHOOSE}",
        ("export runs/cnn; classify data --model exports/cnn/cnn.fp32.onnx --threshold auto",),
        0,
    ),
    Case(
        "has a different --threshold than",
        f"{SHARDS.replace('2/2', '2/2 --threshold 0.5')}; {MERGE}",
        (f"classify data --shard 2/2 -o b.csv --overwrite; {MERGE}",),
    ),
    Case(
        "have different classes ({}); choose one with --model",
        f"{THREE}; export three/cnn -o new; $ cp -r new/cnn exports/three; classify data",
        ("classify data --model exports/cnn/cnn.fp32.onnx",),
        2,
    ),
    Case(
        "is not of {} as it is now: {}run tltools export {}",
        f"export; $ rm -r runs/cnn; {ONE_EPOCH}; classify data --model cnn",
        (
            "$ rm exports/cnn/cnn.fp32.onnx; export runs/cnn; classify data --model cnn",
            "classify data --model exports/cnn/cnn.fp32.onnx",
        ),
        2,
    ),
    Case(
        "is not of {} as it is now: {}run tltools export {}",
        f"export; $ rm -r runs/cnn; {ONE_EPOCH} --val-fraction 0.375; classify data",
        ("export runs/cnn",),
        0,
    ),
    Case(
        "is a model, not images: choose it with --model {}",
        "classify exports/cnn/cnn.fp32.onnx data",
        ("classify data --model exports/cnn/cnn.fp32.onnx",),
    ),
    Case(
        "is a model, not images: choose it with --model {}",
        "classify cnn data --model exports/cnn/cnn.fp32.onnx",
        ("classify data --model exports/cnn/cnn.fp32.onnx",),
    ),
    Case(
        "--threshold applies to a single class, and the model has",
        f"{THREE}; export three/cnn -o new; {CLASSIFY_THREE} --threshold 0.5",
        (
            f"{CLASSIFY_THREE} --threshold 0.5 --class red",
            f"{CLASSIFY_THREE} --min-confidence 0.5",
        ),
        2,
    ),
    Case(
        "the card of {} has no threshold",
        f"sample s --num-images 60; evaluate runs/cnn s {NAMES} --threshold auto",
        (
            f"{CHOOSE}; evaluate runs/cnn s {NAMES} --threshold auto",
            f"evaluate runs/cnn s {NAMES} --threshold 0.5",
        ),
        2,
    ),
    Case(
        "this export of {} has no threshold, but {} has",
        f"{CHOSEN}; classify data --threshold auto",
        ("export runs/cnn; classify data --threshold auto", "classify data --threshold 0.5"),
        2,
    ),
    Case(
        "this export of {} has no threshold; if its run",
        f"{CHOSEN}; $ mv runs kept; classify data --threshold auto",
        (
            "$ mv kept runs; export runs/cnn; classify data --threshold auto",
            "classify data --threshold 0.5",
        ),
        2,
    ),
    Case(
        "this export of {} has no threshold, nor does {}",
        "classify data --threshold auto",
        (f"{CHOSEN}; export runs/cnn; classify data --threshold auto",),
        2,
    ),
    Case(
        "the card of {} has a {} {}, and no threshold",
        f"{CHOSEN}; evaluate runs/cnn s {NAMES} --threshold auto --class bright",
        (
            f"evaluate runs/cnn s {NAMES} --threshold auto",
            f"evaluate runs/cnn s {NAMES} --threshold 0.5 --class bright",
        ),
        2,
    ),
    Case(
        "the threshold in the card of {} is a minimum confidence",
        f"{THREE}; evaluate three/cnn --target-precision 0.1; "
        f"{SCORE_THREE} --threshold auto --min-confidence 0.1",
        (f"{SCORE_THREE} --threshold auto", f"{SCORE_THREE} --min-confidence 0.1"),
        2,
    ),
    Case(
        "--target-recall applies to a single class",
        f"{THREE}; evaluate three/cnn --target-recall 0.5",
        ("evaluate three/cnn --target-recall 0.5 --class red",),
        2,
    ),
    Case(
        "--class names the class of a threshold",
        "classify data --class dark",
        ("classify data --class dark --threshold 0.5", "classify data --overwrite"),
        2,
    ),
    Case(
        "{} is for scoring, which choosing",
        f"{CHOSEN} --report a.html",
        (f"{CHOOSE}; evaluate runs/cnn s {NAMES} --threshold auto --report a.html",),
        2,
    ),
    Case(
        "missing argument DATA: name the labeled images",
        "evaluate runs/cnn",
        ("evaluate runs/cnn data",),
        2,
    ),
    Case("give either --target-precision", f"{CHOSEN} --target-precision 0.4", (CHOOSE,), 2),
    Case(
        "the model has no class {};",
        "classify data --threshold 0.5 --class darc",
        ("classify data --threshold 0.5 --class dark",),
        2,
    ),
    Case(
        "a threshold is not chosen on --split",
        f"{SPLIT_SAMPLE}; {CHOOSE} --split test",
        (CHOOSE,),
        2,
    ),
    # ------------------------------------------------------------------ bench
    # ------------------------------------------------------------------ others
    Case(
        "--num-images must be at least 4",
        "sample s --num-images 3",
        ("sample s --num-images 4",),
        2,
    ),
    Case(
        "--output {} is a file; name a folder",
        "export -o one.png",
        ("export -o elsewhere",),
        2,
    ),
    Case(
        "--output {} would be a folder",
        "export -o cnn.onnx",
        ("export -o cnn",),
        2,
    ),
    Case(
        "--yes answers the question of --delete",
        "runs cnn --yes",
        ("runs cnn --yes --delete", "runs"),
        2,
    ),
    Case(
        "--exports works only with --delete",
        "runs cnn --exports",
        ("runs cnn --exports --delete --yes", "runs"),
        2,
    ),
    Case(
        "--delete needs the names of runs", "runs --delete", ("runs; runs --delete --yes cnn",), 2
    ),
    Case("cannot ask for confirmation", "runs --delete cnn", ("runs --delete cnn --yes",), 2),
    Case(
        "--images {} is not a folder; name the folder that",
        "report --images one.png",
        ("report --images data",),
        2,
    ),
    Case(
        "run {} has no class",
        "explain runs/cnn one.png --class darc",
        ("explain runs/cnn one.png --class dark",),
        2,
    ),
    Case(
        "heat maps are PNG files",
        "explain runs/cnn one.png -o a.jpg",
        ("explain runs/cnn one.png -o a.png",),
        2,
    ),
    Case(
        "--output {} is one file for {} images",
        "explain runs/cnn one.png data/dark/0.png -o a.png",
        ("explain runs/cnn one.png data/dark/0.png -o maps",),
        2,
    ),
    Case(
        "--output {} is neither a folder nor",
        "explain runs/cnn one.png -o labels.csv",
        ("explain runs/cnn one.png -o maps", "explain runs/cnn one.png -o a.png"),
        2,
    ),
    Case(
        "{} is one of the images; choose another --output",
        "explain runs/cnn one.png -o one.png",
        ("explain runs/cnn one.png -o a.png",),
        2,
    ),
    Case("--tf32 needs an NVIDIA GPU, but", "classify data --tf32", ("classify data",), 1),
    Case("Next: tltools docs TOPIC", "docs", ("docs install",), 0),
    Case(
        "Next: tltools train DATA --model NAME",
        "models",
        ("train data --model cnn --epochs 1", "models --all"),
        0,
    ),
    Case(
        "Next: tltools train {} --class-names {}",
        "sample s --num-images 20",
        ("train s --class-names non-emergency,emergency --model cnn --epochs 1",),
        0,
    ),
    Case(
        "Next: tltools runs A B compares",
        "$ cp -r runs/cnn runs/two; runs",
        ("runs cnn two",),
        0,
    ),
    Case(
        "{} (see {} --help)",
        "classify data --bogus",
        ("classify --help",),
        2,
    ),
    Case(
        "tltools runs --delete {} deletes it",
        "$ cp -r runs/cnn runs/bad && echo x > runs/bad/card.json; runs",
        ("runs --delete bad --yes; runs",),
        0,
    ),
    Case(
        "recreate it with tltools export",
        "$ truncate -s 1000 exports/cnn/cnn.fp32.onnx; "
        "classify data --model exports/cnn/cnn.fp32.onnx",
        ("export; classify data --model exports/cnn/cnn.fp32.onnx",),
    ),
    Case(
        "tltools train --resume {}",
        f"$ cp -r runs/cnn runs/cnn-2 && rm runs/cnn-2/card.json; {ONE_EPOCH}",
        ("train --resume --model cnn",),
        0,
    ),
    Case(
        "use a lower learning rate (--lr), --clip-grad 1 or --precision fp32",
        f"{ONE_EPOCH} --lr 1e30",
        (f"{ONE_EPOCH} --lr 0.001",),
    ),
    Case(
        "--feature-precision {} has no effect with --fine-tune",
        f"{VGG16} --fine-tune all",
        (f"{VGG16.partition(' --feature')[0]} --fine-tune all",),
        2,
    ),
    Case(
        "{} --model {} --fine-tune last-block",
        f"{MIXED}; {VGG16.replace('data', MIXED_DATA)}",  # of which not every label can be right
        (f"{VGG16.replace('data', MIXED_DATA)} --fine-tune last-block",),
        0,
    ),
    Case(
        "{} holds the evaluation of {} on {}; choose another",
        f"{SCORED}; evaluate runs/cnn data --output scores",
        (
            "evaluate runs/cnn data --output others",
            "evaluate runs/cnn data --output scores --overwrite",
        ),
        2,
    ),
    Case(
        "{} of the page's {} cannot be found",
        "classify data --output p.csv; report p.csv --images runs",
        ("report p.csv --images data",),
        0,
    ),
    Case(
        "both names are of the run {}: name two runs",
        "runs cnn runs/cnn",
        ("runs", "inspect runs/cnn"),
        2,
    ),
    Case(
        "{} row {} is not from tltools classify",
        "classify data; $ sed -i '2s/,[a-z]*,[0-9.]*/,dark,7/' predictions.csv; "
        "report predictions.csv",
        ("classify data --overwrite; report predictions.csv",),
    ),
    Case(
        "the data has classes that the models do not know",
        "bench --data data --class-names light,dark",
        (f"{BENCH} --data data --class-names bright,dark",),
    ),
    Case(
        "trained on {} of these {}, so {} accuracy looks better",
        f"{BENCH} --data data",
        (BENCH,),
        0,
    ),
    Case(
        "{} validation image{} missing from {}",
        "$ sed -i 's/[.]png,/.gone,/' runs/cnn/split.csv; bench",
        (f"{BENCH} --data data",),
    ),
)

_GPU = "needs a GPU"
_RAY = "needs a Ray cluster"
_OTHER = "names another program's command, or a package"
_ADVICE = "advice about a measurement, nothing that has failed"
_NO_MESSAGE = "a part of other texts, or no message"
_PAGE = "stands on the HTML page"
_NETWORK = "needs weights that are downloaded"
_SERVICE = "of a service that runs until it is stopped: test_serve.py"
_RACE = "needs an event in the middle of a job: the tests of that job"
_SIBLING = "the remedy of another message, which is tried: a bench takes seconds"
_PYTHON = "of the Python interface: the command line checks it itself"

UNTRIED: dict[str, str] = {
    "with --threshold {} and --class {}": _NO_MESSAGE,
    "without --threshold": _NO_MESSAGE,
    "{}. It was chosen for a {} of at least": _PAGE,
    "{} holds {} and no correctly classified one": _PAGE,
    "or add --exclude-train": _NO_MESSAGE,
    "{} needs an input size divisible by {}": _NETWORK,
    "{} has no feature maps that tltools knows": _NETWORK,
    "{}{} takes only images of {} pixels": _NETWORK,
    "{}{} resizes images by {}, which tltools": _NETWORK,
    "--model {}NAME needs timm": _OTHER,
    "torchvision's {} does not end with a linear layer": _NETWORK,
    "a larger --budget is more precise": _ADVICE,
    "it needs only {folder}/requirements.txt": _OTHER,
    "to choose one on other labeled images: tltools": "needs three classes: test_thresholds.py",
    "the two labels may be swapped; --class-names": "needs an accurate model: test_evaluate.py",
    "{} holds only some of the images; run the same": _RACE,
    "fewer --batch-sizes": _ADVICE,
    "these models were trained on different data": _SIBLING,
    "{} of the {} images, in random order": _ADVICE,
    "A batch size is skipped if": _ADVICE,
    "--budget {} (seconds) is divided": _ADVICE,
    "{} {} no export in {}/, so only PyTorch": _SIBLING,
    "{} and {} have different classes: bench them separately": _SIBLING,
    "exports, kept without --exports": "a part of a question in a terminal: test_runs.py",
    "the limit of tltools classify --unknown 99": "a line of a card: test_unknown.py",
    "Next: the same command with --output {} --mistakes": _ADVICE,
    "no images to bench with": _PYTHON,
    "the slowest round took {} times": _ADVICE,
    "the timings of {} of {} candidates": _ADVICE,
    "the {} {} was of the shorter training": _ADVICE,
    "classify FOLDER --sort-into DIR": _NO_MESSAGE,
    "runs --delete NAME": _NO_MESSAGE,
    "{} is of {}, perhaps as it was before": "needs two folders of runs: test_runs.py",
    "--class {} ": _NO_MESSAGE,
    "{} is of a later training than {}": "needs two folders of runs: test_runs.py",
    " DATA may hold the folders train/ and val/": _ADVICE,
    "use --model {} and --fine-tune last-block": _PYTHON,
    "3, or fewer if --budget is given": _NO_MESSAGE,
    "tltools classify FOLDER --model {}{}": _ADVICE,
    "classify's fastest round had": _ADVICE,
    "hand-over between the stages": _ADVICE,
    "try a faster disk": _ADVICE,
    "try another output format": _ADVICE,
    "it has no export; create one": _ADVICE,
    "{} has a card of version {}, but": _OTHER,
    "has a different --tf32 than": _GPU,
    "{} is not the record of a shard; recreate": "no command writes such a record",
    "the images have changed since {} was written": _RACE,
    "the folder must be on the same disk": "needs two file systems: test_sorting.py",
    "cannot check whether {} exists": "needs a server that refuses: test_remote.py",
    "--output {} needs {}, which is not installed": _OTHER,
    "each actor uses its own cores": _NO_MESSAGE,
    "predictions.csv, or the folder predictions": _NO_MESSAGE,
    "(`tltools docs": _NO_MESSAGE,
    "with the lowest F1 (--output FOLDER": "a heading; the option writes the other rows",
    "Next: tritonserver": _OTHER,
    "Next: docker build": _OTHER,
    'Literal["files"': _NO_MESSAGE,
    "{} can be reached from other machines": _SERVICE,
    "--report needs {}, which {} not installed": _OTHER,
    "{}; {} with --fine-tune": _NO_MESSAGE,
    ", --fine-tune {}": _NO_MESSAGE,
    "run {} was begun with {} epochs, which": _PYTHON,
    " with --model {}": _RACE,
    "--epochs is {} and can only be increased": _NO_MESSAGE,
    "none; on a GPU, --model all": _NO_MESSAGE,
    "a Git LFS pointer": _OTHER,
    "cannot write {}: {}; check your permissions there": "needs a server: test_remote.py",
    "it is a link in the archive": _OTHER,
    "it is not a tar or zip archive": _NO_MESSAGE,
    "GPU {}, --device cuda:{}": _GPU,
    "pip install": _OTHER,
    "tltools train --model {} downloads them": _NETWORK,
    "pip uninstall": _OTHER,
    "not installed as a package: tltools export": _OTHER,
    "train backbones with --head pooled": "advice about little memory: test_doctor.py",
    "PyTorch does not support {} on Python": "needs Python 3.14",
    "{} was not written: {}; free memory": _GPU,
    "int8 is verified on the CPU, where": _GPU,
    "the model failed on a batch of": _GPU,
    "class {} is empty or contains a line break": _NO_MESSAGE,
    "part {} has crashed {} workers": _RAY,
    "cannot reach the Ray cluster": _RAY,
    "--ray-address {} is a Ray Client address": _RAY,
    "--engine ray needs Ray Data": _OTHER,
    "parts in {} have no spreadsheet mode": _RAY,
    "--engine ray cannot write to a URL": _RAY,
    "--engine ray writes a folder of parts": _RAY,
    "--engine ray cannot read archives": _RAY,
    "--engine ray cannot write to standard output": _RAY,
    "--engine ray cannot read standard input": _RAY,
    "run the same command again, or use --engine local": _RAY,
    "{} contains other files": _RAY,
    "{} exists and is complete; replace it": _RAY,
    "--part-size {} is not a multiple": _RAY,
    "{} contains parts, but no record": _RAY,
    "no machine of the cluster has": _RAY,
    "part {} is not from the same listing": _RAY,
    "--augment {} does not work on a cluster": _RAY,
    "--device {}: the cluster has no GPU": _RAY,
    "--device {} names GPUs of one machine": _RAY,
    "this machine's features are {} off": _RAY,
    "{} has a confusion matrix that does not match": "needs a file changed by hand",
    "This file has no images": _PAGE,
    "--device {} names several GPUs": _GPU,
    "{} is not a bench result of this version": "needs a file of an earlier version",
    "{} says how --data is read": _SIBLING,
    "the runs of these exports are not": _SIBLING,
    "To see the images, name the folder": _PAGE,
    "is older than {}{}; run tltools bench again": _PAGE,
    "--chart-fg": _NO_MESSAGE,
    "run `tltools doctor`": _GPU,
    "--tf32 needs a GPU of compute capability": _GPU,
    "--device {} runs ONNX exports only": _GPU,
    "onnxruntime fell back to": _GPU,
    "{} cannot run all of this model": _GPU,
    "docker run --gpus all": _GPU,
    "onnxruntime cannot open": "needs a file that only onnxruntime rejects: test_damaged.py",
    "or choose the CPU with --device cpu": _GPU,
    "cannot move {} to {}": _GPU,
    "--batch-size must be at least 1": _PYTHON,
    "--class-level must be 1": _PYTHON,
    "an evaluation makes no split": _PYTHON,
    "there are no images to calibrate on": _PYTHON,
    "--min-confidence must be between": _PYTHON,
    "--threshold must be between 0 and 1": _PYTHON,
    "training {} on {} classes of {}-pixel images takes": "needs a model larger than the memory",
    "the distances of this {} export of {} differ": "needs another card: test_unknown.py",
    "the label that --unknown assigns; leave": "needs another card: test_unknown.py",
    "{} fails its self-test with": "needs other weights below a right checksum: test_selftest.py",
    "{} has a damaged self-test": "needs another card below a right checksum: test_selftest.py",
    "times at the same place, but no image causes it": _RACE,
    "before the first image, so no image is at fault": _RACE,
    "cannot listen on {}, port": _SERVICE,
    "port {} of {} is in use": _SERVICE,
    "port {} is reserved for root": _SERVICE,
    "--max-delay-ms must be": _SERVICE,
    "--model {} has no --fine-tune": _NETWORK,
    "{}; choose another folder with --cache-dir": "of decoded images: test_decoded.py",
    "cannot read the temporary file of decoded images": "needs a broken disk: test_decoded.py",
    "use --feature-precision fp32": "needs weights that int8 does not hold: test_training.py",
    "--feature-precision int8 needs the CPU": _GPU,
    "--precision amp needs a GPU or a CPU": "needs a processor without bf16: test_fit.py",
    "Watch: ": _OTHER,
    "--log {} needs {}": _OTHER,
    "MLflow cannot use": "needs MLflow's store: test_logs.py",
    "cannot write the TensorBoard log": "needs a full disk: test_logs.py",
    "cannot open the MLflow store": "needs MLflow's store: test_logs.py",
    "; --head {} needs fewer": "needs a network without room for an image: test_models.py",
    "{} resizes images by {}, which": _NETWORK,
    "--output FOLDER writes it": "needs a failure after the last epoch: test_training.py",
}
"""Pieces of the other messages, and why no line provokes them here."""
