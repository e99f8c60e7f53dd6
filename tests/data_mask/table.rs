//! A table of templates x conversations with the mask of every token written out, and templates that break naive masking.

use crate::words::{options, show, Words};
use qvac_ft::data::{Content, Dataset, Error, LossOn, Message, Options, Origin, Record, Template, Tokenizer};
use serde_json::json;

/// One cell of the table. In `expected` a trained token stands in «», any other in []; a line break is `\n`.
struct Case {
    template: &'static str,
    conversation: &'static str,
    expected: &'static str,
}

fn conversation(name: &str) -> Vec<Message> {
    let m = Message::new;
    match name {
        "multi-turn" => {
            vec![m("user", "Hi"), m("assistant", "Yes sir"), m("user", "Bye"), m("assistant", "So long")]
        }
        "system" => vec![m("system", "Be kind"), m("user", "Hi"), m("assistant", "Hello")],
        "empty turn" => vec![m("user", "Hi"), m("assistant", ""), m("user", "Bye"), m("assistant", "Ok")],
        "tool" => {
            let mut call = m("assistant", "");
            let calls = json!([{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]);
            call.rest.insert("tool_calls".into(), calls);
            vec![m("user", "Sum"), call, m("tool", "2"), m("assistant", "Two")]
        }
        other => panic!("no conversation `{other}`"),
    }
}

fn record(messages: Vec<Message>) -> Record {
    Record {
        origin: Origin { file: std::path::Path::new("chats.jsonl").into(), line: 7 },
        content: Content::Chat { messages, tools: None },
        label: None,
    }
}

fn encode(messages: Vec<Message>, words: &Words, options: &Options<'_>) -> Result<Dataset, Error> {
    Dataset::encode(&[record(messages)], words, options)
}

fn masked(messages: Vec<Message>, options: &Options<'_>) -> String {
    let words = Words::new();
    match encode(messages, &words, options) {
        Ok(set) => show(&set.samples[0], &words),
        Err(e) => format!("error: {e}"),
    }
}

const TABLE: &[Case] = &[
    Case {
        template: "chatml",
        conversation: "multi-turn",
        expected: r"[<|im_start|>][user][\n][Hi][<|im_end|>][\n][<|im_start|>][assistant][\n]«Yes»« sir»«<|im_end|>»[\n][<|im_start|>][user][\n][Bye][<|im_end|>][\n][<|im_start|>][assistant][\n]«So»« long»«<|im_end|>»[\n]",
    },
    Case {
        template: "chatml",
        conversation: "system",
        expected: r"[<|im_start|>][system][\n][Be][ kind][<|im_end|>][\n][<|im_start|>][user][\n][Hi][<|im_end|>][\n][<|im_start|>][assistant][\n]«Hello»«<|im_end|>»[\n]",
    },
    Case {
        template: "chatml",
        conversation: "empty turn",
        expected: r"[<|im_start|>][user][\n][Hi][<|im_end|>][\n][<|im_start|>][assistant][\n]«<|im_end|>»[\n][<|im_start|>][user][\n][Bye][<|im_end|>][\n][<|im_start|>][assistant][\n]«Ok»«<|im_end|>»[\n]",
    },
    Case {
        template: "chatml",
        conversation: "tool",
        expected: r#"[<|im_start|>][user][\n][Sum][<|im_end|>][\n][<|im_start|>][assistant][\n]«<»«tool»«_»«call»«>»«{»«"»«name»«"»«:»« »«"»«add»«"»«,»« »«"»«arguments»«"»«:»« »«{»«"»«a»«"»«:»« 1»«}»«}»«<»«/»«tool»«_»«call»«>»«<|im_end|>»[\n][<|im_start|>][tool][\n][2][<|im_end|>][\n][<|im_start|>][assistant][\n]«Two»«<|im_end|>»[\n]"#,
    },
    Case {
        template: "llama3",
        conversation: "multi-turn",
        expected: r"[<s>][<|start_header_id|>][user][<|end_header_id|>][\n][\n][Hi][<|eot_id|>][<|start_header_id|>][assistant][<|end_header_id|>][\n][\n]«Yes»« sir»«<|eot_id|>»[<|start_header_id|>][user][<|end_header_id|>][\n][\n][Bye][<|eot_id|>][<|start_header_id|>][assistant][<|end_header_id|>][\n][\n]«So»« long»«<|eot_id|>»",
    },
    Case {
        template: "llama3",
        conversation: "system",
        expected: r"[<s>][<|start_header_id|>][system][<|end_header_id|>][\n][\n][Be][ kind][<|eot_id|>][<|start_header_id|>][user][<|end_header_id|>][\n][\n][Hi][<|eot_id|>][<|start_header_id|>][assistant][<|end_header_id|>][\n][\n]«Hello»«<|eot_id|>»",
    },
    Case {
        template: "llama3",
        conversation: "empty turn",
        expected: r"[<s>][<|start_header_id|>][user][<|end_header_id|>][\n][\n][Hi][<|eot_id|>][<|start_header_id|>][assistant][<|end_header_id|>][\n][\n]«<|eot_id|>»[<|start_header_id|>][user][<|end_header_id|>][\n][\n][Bye][<|eot_id|>][<|start_header_id|>][assistant][<|end_header_id|>][\n][\n]«Ok»«<|eot_id|>»",
    },
    Case {
        template: "llama3",
        conversation: "tool",
        expected: r#"[<s>][<|start_header_id|>][user][<|end_header_id|>][\n][\n][Sum][<|eot_id|>][<|start_header_id|>][assistant][<|end_header_id|>][\n][\n]«{»«"»«name»«"»«:»« »«"»«add»«"»«,»« »«"»«parameters»«"»«:»« »«{»«"»«a»«"»«:»« 1»«}»«}»«<|eot_id|>»[<|start_header_id|>][ipython][<|end_header_id|>][\n][\n][2][<|eot_id|>][<|start_header_id|>][assistant][<|end_header_id|>][\n][\n]«Two»«<|eot_id|>»"#,
    },
    Case {
        template: "gemma",
        conversation: "multi-turn",
        expected: r"[<s>][<start_of_turn>][user][\n][Hi][<end_of_turn>][\n][<start_of_turn>][model][\n]«Yes»« sir»«<end_of_turn>»[\n][<start_of_turn>][user][\n][Bye][<end_of_turn>][\n][<start_of_turn>][model][\n]«So»« long»«<end_of_turn>»[\n]",
    },
    Case {
        template: "gemma",
        conversation: "system",
        expected: r"[<s>][<start_of_turn>][user][\n][Be][ kind][\n][\n][Hi][<end_of_turn>][\n][<start_of_turn>][model][\n]«Hello»«<end_of_turn>»[\n]",
    },
    Case {
        template: "gemma",
        conversation: "empty turn",
        expected: r"[<s>][<start_of_turn>][user][\n][Hi][<end_of_turn>][\n][<start_of_turn>][model][\n]«<end_of_turn>»[\n][<start_of_turn>][user][\n][Bye][<end_of_turn>][\n][<start_of_turn>][model][\n]«Ok»«<end_of_turn>»[\n]",
    },
    Case {
        template: "gemma",
        conversation: "tool",
        expected: "error: chats.jsonl:7: the chat template `gemma` refused the conversation: user and assistant must alternate, message 2 is from tool (line 11 of the template)",
    },
    Case {
        template: "zephyr",
        conversation: "multi-turn",
        expected: r"[<s>][<|user|>][\n][Hi][</s>][\n][<|assistant|>][\n]«Yes»« sir»«</s>»[\n][<|user|>][\n][Bye][</s>][\n][<|assistant|>][\n]«So»« long»«</s>»[\n]",
    },
    Case {
        template: "zephyr",
        conversation: "system",
        expected: r"[<s>][<|system|>][\n][Be][ kind][</s>][\n][<|user|>][\n][Hi][</s>][\n][<|assistant|>][\n]«Hello»«</s>»[\n]",
    },
    Case {
        template: "zephyr",
        conversation: "empty turn",
        expected: r"[<s>][<|user|>][\n][Hi][</s>][\n][<|assistant|>][\n]«</s>»[\n][<|user|>][\n][Bye][</s>][\n][<|assistant|>][\n]«Ok»«</s>»[\n]",
    },
    Case {
        template: "zephyr",
        conversation: "tool",
        expected: "error: chats.jsonl:7: the chat template `zephyr` refused the conversation: no turn for the role tool (line 4 of the template)",
    },
    Case {
        template: "plain",
        conversation: "multi-turn",
        expected: r"[<s>][User][:][ Hi][\n][Assistant][:]« Yes»« sir»«</s>»[\n][User][:][ Bye][\n][Assistant][:]« So»« long»«</s>»[\n]",
    },
    Case {
        template: "plain",
        conversation: "system",
        expected: r"[<s>][System][:][ Be][ kind][\n][User][:][ Hi][\n][Assistant][:]« Hello»«</s>»[\n]",
    },
    Case {
        template: "plain",
        conversation: "empty turn",
        expected: r"[<s>][User][:][ Hi][\n][Assistant][:]«</s>»[\n][User][:][ Bye][\n][Assistant][:]« Ok»«</s>»[\n]",
    },
    Case {
        template: "plain",
        conversation: "tool",
        expected: "error: chats.jsonl:7: cannot tell what the assistant wrote in message 1 under the chat template `plain`: the template leaves its tool calls out",
    },
];

#[test]
fn every_token_of_every_template_and_conversation_is_masked_right() {
    // chatml is a vocabulary without BOS in practice, but the mask must not care.
    let mut wrong = Vec::new();
    for case in TABLE {
        let words_options = Options { chat_template: Some(case.template), ..options() };
        let mut words = Words::new();
        words.add_bos = case.template != "chatml";
        let found = match encode(conversation(case.conversation), &words, &words_options) {
            Ok(set) => show(&set.samples[0], &words),
            Err(e) => format!("error: {e}"),
        };
        if found != case.expected {
            wrong.push(format!(
                "{} x {}\n  expected {}\n  found    {found}",
                case.template, case.conversation, case.expected
            ));
        }
    }
    assert_eq!(TABLE.len(), 20, "five templates x four conversations");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_sample_is_the_prompt_of_inference_and_then_the_answer() {
    // `raw` is not here: without anything between two messages, their letters may share a token.
    for template in ["chatml", "llama3", "gemma", "zephyr", "plain"] {
        let words = Words::new();
        let chat = conversation("multi-turn");
        let set =
            encode(chat.clone(), &words, &Options { chat_template: Some(template), ..options() }).unwrap();
        let sample = &set.samples[0];
        let prompt =
            Template::resolve(Some(template), None, &words).unwrap().prompt(&chat[..3], None).unwrap();
        let mut tokens = words.encode(&prompt, false, true).unwrap();
        if tokens[0] != 0 {
            tokens.insert(0, 0);
        }
        assert_eq!(sample.tokens[..sample.answer_start], tokens, "{template}");
    }
}

/// Templates that break naive masking, each in its own way.
const ODD: &[(&str, &str, &str)] = &[
    (
        "ignores the generation flag and has no header: the space before the answer is the model's to write",
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        r"[<s>][[][INST][]][ Hi][ ][[][/][INST][]]« Yes»« sir»«</s>»[[][INST][]][ Bye][ ][[][/][INST][]]« So»« long»«</s>»",
    ),
    (
        "ignores the generation flag and has a header, which must stay out",
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
        r"[<s>][<|im_start|>][user][\n][Hi][<|im_end|>][\n][<|im_start|>][assistant][\n]«Yes»« sir»«<|im_end|>»[\n][<|im_start|>][user][\n][Bye][<|im_end|>][\n][<|im_start|>][assistant][\n]«So»« long»«<|im_end|>»[\n]",
    ),
    (
        "opens with a system prompt of its own",
        "{% if messages[0].role != 'system' %}<|im_start|>system\nDefault<|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        r"[<s>][<|im_start|>][system][\n][Default][<|im_end|>][\n][<|im_start|>][user][\n][Hi][<|im_end|>][\n][<|im_start|>][assistant][\n]«Yes»« sir»«<|im_end|>»[\n][<|im_start|>][user][\n][Bye][<|im_end|>][\n][<|im_start|>][assistant][\n]«So»« long»«<|im_end|>»[\n]",
    ),
    (
        "writes an empty thought into the last answer only, and closes the whole with EOS",
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if loop.last and m.role == 'assistant' %}T:.{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}{{ eos_token }}{% endif %}",
        r"[<s>][<|im_start|>][user][\n][Hi][<|im_end|>][\n][<|im_start|>][assistant][\n]«Yes»« sir»«<|im_end|>»[\n][<|im_start|>][user][\n][Bye][<|im_end|>][\n][<|im_start|>][assistant][\n]«T»«:»«.»«So»« long»«<|im_end|>»[\n][</s>]",
    ),
    (
        "has an end-of-turn mark that is plain text for this vocabulary",
        "{% for m in messages %}## {{ m.role }}\n{{ m.content }}\n##end\n{% endfor %}{% if add_generation_prompt %}## assistant\n{% endif %}",
        r"[<s>][#][#][ user][\n][Hi][\n][#][#][end][\n][#][#][ assistant][\n]«Yes»« sir»«\n»«#»«#»«end»[\n][#][#][ user][\n][Bye][\n][#][#][end][\n][#][#][ assistant][\n]«So»« long»«\n»«#»«#»«end»[\n]",
    ),
    (
        "marks generation for Hugging Face",
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}",
        r"[<s>][<|im_start|>][user][\n][Hi][<|im_end|>][<|im_start|>][assistant][\n]«Yes»« sir»«<|im_end|>»[<|im_start|>][user][\n][Bye][<|im_end|>][<|im_start|>][assistant][\n]«So»« long»«<|im_end|>»",
    ),
];

#[test]
fn odd_templates_are_masked_right() {
    for (what, template, expected) in ODD {
        let found =
            masked(conversation("multi-turn"), &Options { chat_template: Some(template), ..options() });
        assert_eq!(&found, expected, "{what}");
    }
}

const THINKING: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n\
    {% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1].lstrip('\\n') }}\
    {% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

#[test]
fn the_reasoning_that_a_template_drops_from_earlier_turns_is_not_missed() {
    let m = Message::new;
    let chat = vec![
        m("user", "Hi"),
        m("assistant", "<think>Hm</think>\nYes"),
        m("user", "Bye"),
        m("assistant", "<think>Hm</think>\nSo"),
    ];
    let found = masked(chat, &Options { chat_template: Some(THINKING), ..options() });
    assert_eq!(
        found,
        r"[<s>][<|im_start|>][user][\n][Hi][<|im_end|>][\n][<|im_start|>][assistant][\n]«Yes»«<|im_end|>»[\n][<|im_start|>][user][\n][Bye][<|im_end|>][\n][<|im_start|>][assistant][\n]«<»«think»«>»«Hm»«<»«/»«think»«>»«\n»«So»«<|im_end|>»[\n]"
    );
}

#[test]
fn a_prompt_that_opens_the_thought_leaves_it_out_of_the_loss() {
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
        {% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}";
    let chat = vec![Message::new("user", "Hi"), Message::new("assistant", "<think>Hm</think>Yes")];
    assert_eq!(
        masked(chat, &Options { chat_template: Some(template), ..options() }),
        r"[<s>][<|im_start|>][user][\n][Hi][<|im_end|>][\n][<|im_start|>][assistant][\n][<][think][>]«Hm»«<»«/»«think»«>»«Yes»«<|im_end|>»[\n]"
    );
}

#[test]
fn a_template_that_cannot_be_followed_is_an_error() {
    // Writes the answers twice, or backwards, or not at all: no span is right.
    for template in [
        "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.role }}{% endfor %}",
        "{% for m in messages %}{{ m.content | length }}{{ m.content }};{% endfor %}",
    ] {
        let words = Words::new();
        let error = encode(
            conversation("multi-turn"),
            &words,
            &Options { chat_template: Some(template), ..options() },
        )
        .expect_err(template);
        assert!(matches!(error, Error::Span { message: 1, .. }), "{template}: {error}");
        assert!(error.to_string().starts_with("chats.jsonl:7: "), "{error}");
        // With every token trained there is nothing to find.
        encode(
            conversation("multi-turn"),
            &words,
            &Options { chat_template: Some(template), loss_on: LossOn::All, ..options() },
        )
        .expect(template);
    }
}

#[test]
fn loss_on_chooses_the_turns() {
    let with = |loss_on| {
        masked(conversation("empty turn"), &Options { loss_on, chat_template: Some("plain"), ..options() })
    };
    assert_eq!(
        with(LossOn::Last),
        r"[<s>][User][:][ Hi][\n][Assistant][:][</s>][\n][User][:][ Bye][\n][Assistant][:]« Ok»«</s>»[\n]"
    );
    assert_eq!(
        with(LossOn::All),
        r"«<s>»«User»«:»« Hi»«\n»«Assistant»«:»«</s>»«\n»«User»«:»« Bye»«\n»«Assistant»«:»« Ok»«</s>»«\n»"
    );
}

#[test]
fn a_message_of_weight_zero_is_not_trained() {
    let mut chat = conversation("multi-turn");
    chat[1].trained = false;
    assert_eq!(
        masked(chat.clone(), &Options { chat_template: Some("plain"), ..options() }),
        r"[<s>][User][:][ Hi][\n][Assistant][:][ Yes][ sir][</s>][\n][User][:][ Bye][\n][Assistant][:]« So»« long»«</s>»[\n]"
    );
    chat[3].trained = false;
    assert!(
        masked(chat, &Options { chat_template: Some("plain"), ..options() }).contains("no token contributes")
    );
}

#[test]
fn bos_is_there_once_whoever_writes_it() {
    for (template, add_bos) in [("chatml", true), ("llama3", true), ("llama3", false)] {
        let mut words = Words::new();
        words.add_bos = add_bos;
        let set =
            encode(conversation("system"), &words, &Options { chat_template: Some(template), ..options() })
                .unwrap();
        let shown = show(&set.samples[0], &words);
        assert_eq!(shown.matches("<s>").count(), 1, "{template}, add_bos {add_bos}: {shown}");
        assert!(shown.starts_with("[<s>]"));
    }
}

#[test]
fn a_token_across_the_border_belongs_to_where_it_starts() {
    // The generation prompt ends in a space, the vocabulary glues it to the word: that token starts in the prompt.
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
    assert_eq!(
        masked(conversation("multi-turn"), &Options { chat_template: Some(template), ..options() }),
        r"[<s>][user][:][ Hi][\n][assistant][:][ Yes]« sir»[\n][user][:][ Bye][\n][assistant][:][ So]« long»[\n]"
    );
}

#[test]
fn a_space_that_the_vocabulary_adds_does_not_shift_the_mask() {
    let mut words = Words::new();
    words.space_prefix = true;
    let set =
        encode(conversation("multi-turn"), &words, &Options { chat_template: Some("zephyr"), ..options() })
            .unwrap();
    assert_eq!(
        show(&set.samples[0], &words),
        r"[<s>][<|user|>][ ][\n][Hi][</s>][ ][\n][<|assistant|>][ ][\n]«Yes»« sir»«</s>»[ ][\n][<|user|>][ ][\n][Bye][</s>][ ][\n][<|assistant|>][ ][\n]«So»« long»«</s>»[ ][\n]"
    );
}

#[test]
fn positions_of_the_answer_are_those_of_its_tokens() {
    let words = Words::new();
    let set =
        encode(conversation("multi-turn"), &words, &Options { chat_template: Some("plain"), ..options() })
            .unwrap();
    let sample = &set.samples[0];
    let answer: Vec<_> = sample.answer().map(|i| words.piece_text(sample.tokens[i])).collect();
    assert_eq!(answer, [" So", " long", "</s>"]);
    assert_eq!(sample.train.len(), sample.tokens.len());
    assert_eq!(set.stats.trained_tokens, 6);
}
