/// Every mistake, and the text that makes it.
const VARIANTS: &[Variant] = &[
    Variant {
        name: "acknowledgement_skipped",
        changes: &[(
            "shootdown",
            "while must_answer(other, generation) {",
            "while false {",
        )],
    },
    Variant {
        name: "one_core_forgotten",
        changes: &[(
            "shootdown",
            "for other in hypervisor.cores() {\n        let mut rounds = 0;",
            "for other in hypervisor.cores().take(2) {\n        let mut rounds = 0;",
        )],
    },
    Variant {
        name: "kick_before_the_generation",
        changes: &[
            (
                "shootdown",
                "hypervisor.generation.fetch_add(1, Ordering::AcqRel) + 1;",
                "hypervisor.generation.load(Ordering::Acquire) + 1;",
            ),
            (
                "shootdown",
                "    serve(core);\n    if seeded",
                "    hypervisor.generation.fetch_add(1, Ordering::AcqRel);\n    serve(core);\n    if seeded",
            ),
        ],
    },
    Variant {
        name: "no_fence_before_the_look",
        changes: &[("shootdown", "crate::atomics::fence(Ordering::SeqCst);", "")],
    },
    Variant {
        name: "kick_without_an_interrupt",
        changes: &[(
            "shootdown",
            "apic::send_nmi(core, other.state.apic_id.get());",
            "",
        )],
    },
    Variant {
        name: "acknowledgement_without_invalidation",
        changes: &[(
            "shootdown",
            "        invalidate(core);\n        core.state.step",
            "        core.state.step",
        )],
    },
    Variant {
        name: "acknowledgement_goes_back",
        changes: &[(
            "shootdown",
            ".fetch_max(generation, Ordering::AcqRel);",
            ".store(generation, Ordering::Release);",
        )],
    },
    Variant {
        name: "relaxed_look_at_acknowledgements",
        changes: &[(
            "shootdown",
            "core.state.acknowledged.load(Ordering::Acquire) < generation",
            "core.state.acknowledged.load(Ordering::Relaxed) < generation",
        )],
    },
    Variant {
        name: "sleeper_is_waited_for",
        changes: &[(
            "shootdown",
            "&& !core.state.quiescent.load(Ordering::Acquire)",
            "",
        )],
    },
    Variant {
        name: "leaver_is_waited_for",
        changes: &[(
            "shootdown",
            "core.state.active.load(Ordering::Acquire)\n        &&",
            "true &&",
        )],
    },
    Variant {
        name: "waiter_does_not_serve",
        changes: &[(
            "transition",
            "            serve();\n",
            "            let _ = &serve;\n",
        )],
    },
    Variant {
        name: "relaxed_unlock",
        changes: &[(
            "transition",
            "self.0.0.store(false, Ordering::Release);",
            "self.0.0.store(false, Ordering::Relaxed);",
        )],
    },
    Variant {
        name: "relaxed_lock",
        changes: &[(
            "transition",
            ".compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)",
            ".compare_exchange(false, true, Ordering::Relaxed, Ordering::Relaxed)",
        )],
    },
    Variant {
        name: "lock_is_not_taken",
        changes: &[(
            "transition",
            ".compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)",
            ".compare_exchange(false, false, Ordering::Acquire, Ordering::Relaxed)",
        )],
    },
    Variant {
        name: "handler_forgets_the_step",
        changes: &[(
            "shootdown",
            "if core.state.stepping.load(Ordering::Acquire) {",
            "if false {",
        )],
    },
    Variant {
        name: "exit_serves_instead_of_cancelling",
        changes: &[(
            "exits",
            "                cancel_step(core);\n            }\n        } else {",
            "                shootdown::serve(core);\n            }\n        } else {",
        )],
    },
    Variant {
        name: "exit_does_not_look",
        changes: &[(
            "exits",
            "        } else {\n            shootdown::serve(core);\n        }\n        root_nmi(core);",
            "        }\n        root_nmi(core);",
        )],
    },
    Variant {
        name: "kick_is_used_up_late",
        changes: &[
            (
                "shootdown",
                "core.state.kick.swap(false, Ordering::AcqRel)\n",
                "core.state.kick.load(Ordering::Acquire)\n",
            ),
            (
                "exits",
                "        finish(core);\n    }\n}\n\n/// `exit::finish`",
                "        finish(core);\n        core.state.kick.store(false, Ordering::Release);\n    }\n}\n\n/// `exit::finish`",
            ),
        ],
    },
    Variant {
        name: "private_path_is_not_rebuilt",
        changes: &[(
            "exits",
            "        _ => {}\n    }\n    build_path(core, hypervisor);\n}",
            "        _ => {}\n    }\n}",
        )],
    },
    Variant {
        name: "look_before_the_revocation",
        changes: &[(
            "exits",
            "    hypervisor.set_rights(page, Rights::Stepping);\n    shootdown::revoke(core);\n    hypervisor.pages[page].inspect();\n    hypervisor",
            "    hypervisor.pages[page].inspect();\n    hypervisor.set_rights(page, Rights::Stepping);\n    shootdown::revoke(core);\n    hypervisor",
        )],
    },
    Variant {
        name: "step_opens_the_shared_entry",
        changes: &[(
            "exits",
            "                build_path(core, hypervisor);\n                core",
            "                hypervisor.set_rights(page, Rights::Both);\n                build_path(core, hypervisor);\n                core",
        )],
    },
    Variant {
        name: "waker_does_not_invalidate",
        changes: &[
            (
                "shootdown",
                "    core.state.quiescent.store(false, Ordering::SeqCst);\n    invalidate(core);",
                "    core.state.quiescent.store(false, Ordering::SeqCst);",
            ),
            (
                "exits",
                "    shootdown::wake(core);\n    finish(core);",
                "    shootdown::wake(core);\n    enter();",
            ),
        ],
    },
    Variant {
        name: "waker_invalidates_first",
        changes: &[(
            "exits",
            "    shootdown::wake(core);\n    finish(core);",
            "    shootdown::invalidate(core);\n    finish(core);\n    core.state.quiescent.store(false, Ordering::SeqCst);",
        )],
    },
    Variant {
        name: "sleeper_keeps_its_step",
        changes: &[(
            "exits",
            "    cancel_step(core);\n    shootdown::sleep",
            "    shootdown::sleep",
        )],
    },
    Variant {
        name: "joiner_invalidates_first",
        changes: &[(
            "exits",
            "    shootdown::join(core);\n    finish(core);",
            "    shootdown::invalidate(core);\n    finish(core);\n    core.state.active.store(true, Ordering::SeqCst);",
        )],
    },
    Variant {
        name: "leaver_does_not_await_its_kick",
        changes: &[(
            "shootdown",
            "while core.state.kick.load(Ordering::Acquire) && rounds < PATIENCE {",
            "while false && rounds < PATIENCE {",
        )],
    },
];
